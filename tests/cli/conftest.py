"""Runs for the tests of the commands, and how they look at what a command says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from score_sde.cli import main

MOONS = (
    "--config.training.steps=6",
    "--config.training.sample_every=3",
    "--config.training.checkpoint_every=3",
    "--config.training.batch_size=16",
    "--config.data.two_moons.samples=200",
    "--config.network.mlp.width=16",
)
FAST = (
    "--config.likelihood.solver.name=ode",
    "--config.likelihood.solver.ode.method=midpoint",
    "--config.likelihood.solver.ode.steps=4",
    "--config.likelihood.audit=0",
)
DIGITS = ("--config.network.unet.width=8", "--config.training.steps=2", "--config.training.batch_size=16")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on points and one on images, of a few steps each; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["train", "--config=two_moons", f"--workdir={root / 'moons'}", "--quiet", *MOONS]) == 0
    assert main(["train", "--config=digits_vp", f"--workdir={root / 'digits'}", "--quiet", *DIGITS]) == 0
    return root


@pytest.fixture
def moons(trained, tmp_path):
    """A copy of the run on points."""
    shutil.copytree(trained / "moons", tmp_path / "moons")
    return tmp_path / "moons"


@pytest.fixture
def digits(trained, tmp_path):
    """A copy of the run on images."""
    shutil.copytree(trained / "digits", tmp_path / "digits")
    return tmp_path / "digits"


def run(capsys, *arguments) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    """The one sentence of a command that does not succeed: exit code 2, one line, no traceback."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.startswith("score-sde"), message
    assert message.count("\n") == 1, message
    return message


def written(said: str, what: str) -> Path:
    """The file, or the folder, that a command said it wrote."""
    return Path(re.search(rf"^{what}: +(.+)$", said, flags=re.MULTILINE)[1])


def less(options, *changed):
    """``options`` without those that the ``changed`` ones set anew: an option that is given twice is refused."""
    return tuple(option for option in options if option.split("=")[0] not in {other.split("=")[0] for other in changed})


def latest(folder):
    return max((folder / "checkpoints").glob("*.pt"))


def samples(path):
    with np.load(path) as file:
        return file["samples"], json.loads(str(file["about"]))


def likelihoods(path):
    """The values of the single samples beside the record ``path``."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as saved:
        return saved["bits_per_dim"]
