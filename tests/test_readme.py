"""The README does what it says: its Python runs, its commands run in the order in which they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_runs_as_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "500 500" in printed
    assert "bits/dim" in printed
    assert scope["sample"].nfe == 40
    assert scope["run"].step == 100
    assert scope["run"].model.sde.beta_max == 15.0
    assert (scope["result"].log_prob - scope["mixture"].log_prob(scope["c"].x)).abs().max() < 0.02


def test_every_name_in_the_table_exists():
    from score_sde.data import DATASETS
    from score_sde.divergence import DIVERGENCES
    from score_sde.likelihood import DEQUANTIZATIONS, LIKELIHOOD_SOLVERS
    from score_sde.networks import NETWORKS
    from score_sde.objectives import OBJECTIVES, WEIGHTINGS
    from score_sde.parameterization import PARAMETERIZATIONS
    from score_sde.sdes import SDES
    from score_sde.solvers import SOLVERS
    from score_sde.solvers.time_grids import TIME_GRIDS
    from score_sde.time_sampling import TIMES

    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", README, flags=re.MULTILINE))
    tables = {
        "SDEs": SDES,
        "parameterizations": PARAMETERIZATIONS,
        "networks": NETWORKS,
        "objectives": {*OBJECTIVES, *WEIGHTINGS, *TIMES},
        "solvers": SOLVERS,
        "time grids": TIME_GRIDS,
        "likelihood": {*DIVERGENCES, *DEQUANTIZATIONS, *LIKELIHOOD_SOLVERS},
        "data": set(DATASETS) - {"file", "folder"},
    }
    rows["solvers"] = "".join(rows[kind] for kind in ("solvers of the reverse SDE", "Langevin dynamics", "solvers of the ODE"))
    for kind, table in tables.items():
        assert set(table) <= set(re.findall(r"`([\w+]+)`", rows[kind])), kind


@pytest.mark.slow
def test_commands_run_in_order(tmp_path):
    """After a demo with a tiny network in place of `make demo`, whose own recipe is the same command; training is cut short."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command):
        done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        return done.stdout

    assert "score-sde demo --workdir=runs/demo" in (ROOT / "Makefile").read_text().replace("$(BIN)/", "")
    tiny = ("training.steps=60", "network.unet.width=8", "network.unet.multipliers=1,", "network.unet.attention=()")
    run(f"score-sde demo --workdir=runs/demo --quiet {shlex.join(f'--config.{option}' for option in tiny)}")
    report = (tmp_path / "runs" / "demo" / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 10
    assert "http" not in report
    for block in blocks("console"):
        for command in block.strip().splitlines():
            if command.startswith("score-sde train"):
                command += " --config.training.steps=300 --config.network.mlp.width=32"
            assert run(command).strip(), command
    assert (tmp_path / "runs" / "moons" / "samples").is_dir()
