"""What a command says of itself, and how arguments may be written."""

import argparse
import re
import shlex

import pytest

import score_sde
from score_sde.cli import main
from score_sde.cli.parser import build_parser, split_overrides
from tests.cli.conftest import refused


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return choices


@pytest.mark.parametrize("command", commands())
def test_help_has_examples_that_are_sound_and_every_default(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    examples = re.findall(r"^  (score-sde .*)$", commands()[command].epilog, flags=re.MULTILINE)
    assert examples
    for example in examples:
        typed = [argument for argument in shlex.split(example.partition(" > ")[0])[1:] if not argument.startswith("--config.")]
        assert build_parser().parse(typed).command == command
        assert example in said
    for action in commands()[command]._actions:
        if action.dest != "help":
            assert action.help, action.dest
        if action.default not in (None, argparse.SUPPRESS) and action.default is not False:
            assert re.search(rf"by default {re.escape(str(action.default))}\b", said), action.dest


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"score_sde {score_sde.__version__}\n"


def test_a_value_of_the_config_may_come_after_a_blank(capsys):
    how = ["--config.training.steps", "50", "--config.sde.vp.t_min", "1e-3", "--config.seed=3"]
    assert main(["config", "--config=two_moons", *how]) == 0
    said = capsys.readouterr().out
    assert '"steps": 50' in said
    assert '"t_min": 0.001' in said


def test_overrides_are_told_from_options():
    given = ["config", "--config.a.b", "-1.5", "--all", "--config", "two_moons", "--config.c=1", "x", "--config.d", "--quiet"]
    own = ["config", "--all", "--config", "two_moons", "x", "--quiet"]
    assert split_overrides(given) == (own, ["--config.a.b=-1.5", "--config.c=1", "--config.d"])


def test_a_key_without_a_value_is_refused(capsys):
    assert "config.training.steps needs a value" in refused(capsys, "config", "--config=two_moons", "--config.training.steps")
