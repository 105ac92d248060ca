"""``score-sde data check`` suggests options that can be typed."""

import re

import pytest

from score_sde.cli import main
from score_sde.config import override, read_config
from tests.cli.conftest import refused


def test_what_is_found_and_what_to_type(capsys):
    assert main(["data", "check", "--config=digits_ve"]) == 0
    said = capsys.readouterr().out
    assert "1438 training and 359 test samples of shape (1, 8, 8), 17 levels" in said
    typed = re.findall(r"--config\.[\w.]+=[\d.]+", said)
    config = override(read_config("digits_ve"), typed)
    assert config.sde.ve.sigma_max == pytest.approx(8.916)
    assert config.model.labels == config.solver.annealed_langevin.steps + 1 == 25
    assert 0 < config.solver.annealed_langevin.snr < 1


def test_the_smallest_sigma_is_that_of_the_config(capsys):
    assert main(["data", "check", "--config=digits_ve", "--config.sde.ve.sigma_min=0.1"]) == 0
    assert "levels down to sigma_min = 0.1" in capsys.readouterr().out


def test_few_dimensions_and_many_samples(capsys):
    assert main(["data", "check", "--config=two_moons", "--config.data.two_moons.samples=7000"]) == 0
    said = capsys.readouterr().out
    assert "among 5000 drawn at random" in said
    assert "in 2 dimensions any number of levels overlaps" in said


def test_what_it_does_not_read_is_refused(capsys):
    assert "only data, sde and solver can be set" in refused(
        capsys, "data", "check", "--config=digits_ve", "--config.training.steps=3"
    )
