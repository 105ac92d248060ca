"""README and docs do what they say: their Python runs, their commands run in the order in which they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, blocks, text


def test_all_pages_are_read():
    assert set(PAGES) == {"README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", text(page)):
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")])
def test_python_of_a_page_runs_as_written(page):
    scope = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), scope)


def test_python_of_the_readme_runs_as_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in blocks("README.md", "python"):
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
    from score_sde.objectives.steps import STEPS
    from score_sde.parameterization import PARAMETERIZATIONS
    from score_sde.sdes import SDES
    from score_sde.solvers import SOLVERS
    from score_sde.solvers.time_grids import TIME_GRIDS
    from score_sde.time_sampling import TIMES

    rows = [line for line in text("README.md").splitlines() if line.startswith("|")]
    first = {line.split("|")[1].strip(): set(re.findall(r"`([\w+]+)`", line.split("|", 2)[2])) for line in rows}
    solvers = {name for line in rows for name in re.findall(r"^\| `(\w+)` \|", line)}
    networks = set().union(*(names for kind, names in first.items() if kind.startswith("networks")))
    for listed, table in (
        (first["SDEs"], SDES),
        (first["parameterizations"], PARAMETERIZATIONS),
        (networks, NETWORKS),
        (first["objectives"], OBJECTIVES),
        (first["weights"], WEIGHTINGS),
        (first["times"], TIMES),
        (first["steps"], STEPS),
        (solvers - {"tuned"}, SOLVERS),
        (first["time grids"], TIME_GRIDS),
        (first["divergence"], DIVERGENCES),
        (first["dequantization"] - {"variational"}, DEQUANTIZATIONS),
        (first["likelihood"], LIKELIHOOD_SOLVERS),
        (first["data"], DATASETS),
    ):
        assert listed == set(table)


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
    for block in (block for page in PAGES for block in blocks(page, "console")):
        for command in block.strip().splitlines():
            if command.startswith("score-sde train"):
                command += " --config.training.steps=300 --config.network.mlp.width=32"
            assert run(command).strip(), command
    assert (tmp_path / "runs" / "moons" / "samples").is_dir()
