"""What completes a command line in a shell."""

import shutil
import subprocess
import sys

import pytest

from score_sde.cli import main
from score_sde.cli.parser import SECTIONS
from score_sde.config import default_config
from score_sde.objectives import WEIGHTINGS
from score_sde.solvers import SOLVERS
from tests.cli.conftest import refused, run


def completed(script: str, typed: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = [f"'{word}'" for word in typed.split(" ")]
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _score_sde 2>/dev/null"
    show = "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}\n{show}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_solvers(capsys):
    script = run(capsys, "completion", "bash")
    assert completed(script, "score-sde s") == ["sample"]
    assert {"--solver", "--nfe", "--class"} <= set(completed(script, "score-sde sample --"))
    assert completed(script, "score-sde sample --solver uni") == ["unipc"]
    assert {*SOLVERS, "tuned"} == set(completed(script, "score-sde sample --solver "))
    assert completed(script, "score-sde train --config two_") == ["two_moons"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_keys_of_the_config_that_a_command_reads(capsys):
    script = run(capsys, "completion", "bash")
    assert completed(script, "score-sde train --config.training.st") == ["--config.training.steps"]
    assert completed(script, "score-sde train --config.objective.denoising.times.log_snr.") == [
        "--config.objective.denoising.times.log_snr.stratified"
    ]
    assert completed(script, "score-sde train --config.sde su") == ["subvp"]
    assert {*WEIGHTINGS} == set(completed(script, "score-sde train --config.objective.denoising.weighting "))
    assert "--config.solver.ddim.eta" in completed(script, "score-sde sample --config.")
    assert not completed(script, "score-sde sample --config.training.")
    assert not completed(script, "score-sde tune --config.")
    offered = completed(script, "score-sde train --")
    assert "--workdir" in offered
    assert not any(word.startswith("--config.") for word in offered)


def test_the_sections_of_the_parser_are_those_of_a_config():
    assert set(SECTIONS) == set(default_config())


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script(capsys, shell):
    assert "unipc" in run(capsys, "completion", shell)


def test_without_shtab_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'score_sde[completion]'" in refused(capsys, "completion", "bash")


def test_the_values_that_are_completed_are_not_the_only_ones(capsys):
    """A path of a config, and a solver that is misspelt, are still for the command to judge."""
    assert main(["config", "--config=configs/two_moons.py"]) == 0
