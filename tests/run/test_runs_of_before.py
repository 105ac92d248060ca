"""Runs that version 0.1.0 wrote, one of each kind: they load, and give the samples, scores and likelihoods that they gave then.

``tests/data/runs/write.py`` says how each was made.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from score_sde import ProbabilityFlow, load, log_likelihood
from score_sde.cli import main
from score_sde.run import Begun, build_solver, load_begun, load_tuned

pytestmark = pytest.mark.usefixtures("undrawn")

BEFORE = Path(__file__).parent.parent / "data" / "runs"
RUNS = sorted(path.parent.name for path in BEFORE.glob("*/expected.npz"))
TRAINED = sorted(path.parent.name for path in BEFORE.glob("*/checkpoints"))
SOLVERS = json.loads((BEFORE / "solvers.json").read_text())
TOLERANCE = 1e-5
"""Of the largest number of an array: what another order of float32 sums leaves."""


def close(found: torch.Tensor, wanted: np.ndarray) -> bool:
    return np.abs(found.numpy() - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.fixture(params=RUNS, scope="module")
def run(request):
    if request.param == "imported_diffusers":
        pytest.importorskip("diffusers")
    return load(BEFORE / request.param)


@pytest.fixture(scope="module")
def expected(run):
    with np.load(run.folder / "expected.npz") as file:
        return dict(file)


def classes(run) -> torch.Tensor | None:
    return torch.tensor([0, 1, 1]) if run.model.classes else None


def test_every_kind_is_there():
    assert RUNS == [
        "digits",
        "early",
        "early_pictures",
        "exported",
        "imported",
        "imported_diffusers",
        "integers",
        "learned_variance",
        "pictures",
        "stopped",
        "two_moons",
    ]


@pytest.mark.quick("digits", "early", "learned_variance", "two_moons")
def test_scores_and_densities_are_what_they_were(run, expected):
    x, cond = torch.from_numpy(expected["x"]), classes(run)
    for i, t in enumerate(expected["t"]):
        assert close(run.model(x, torch.full((3,), float(t)), cond), expected[f"score_{i}"]), t
    if "score_of_no_class" in expected:
        assert close(run.model(x, torch.full((3,), float(expected["t"][1]))), expected["score_of_no_class"])
    if "variance" in expected:
        ends = torch.tensor(0.0), torch.tensor(1.0)  # between which log Sigma is the v that was stored
        found = run.model.score_and_variance(x, torch.full((3,), float(expected["t"][1])), ends)[1]
        assert close(found, expected["variance"])
    solver = ProbabilityFlow(method="midpoint", steps=3)
    assert close(log_likelihood(run.model, x, solver=solver, cond=cond).log_prob, expected["log_prob"])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.quick("digits", "early", "learned_variance", "two_moons")
def test_samples_are_what_they_were(run, expected, name):
    solver = build_solver({"solver": {"name": name, name: SOLVERS[name]}})
    x = torch.from_numpy(expected["x"])
    assert close(solver.sample(run.model, x.shape, seed=3, cond=classes(run)).x, expected[f"sample_{name}"])


@pytest.mark.parametrize(("name", "class_"), [("two_moons", None), ("digits", None), ("digits", 1)])
def test_tuned_solvers_are_what_they_were(name, class_):
    run = load(BEFORE / name)
    with np.load(run.folder / "expected.npz") as file:
        shape, wanted = file["x"].shape, file[f"tuned_{class_}"]
    cond = classes(run) if class_ is None else torch.full((3,), class_)
    assert close(load_tuned(run.folder, class_=class_).with_budget(5).sample(run.model, shape, seed=3, cond=cond).x, wanted)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A copy of all runs and of their data, in the current directory."""
    shutil.copytree(BEFORE, tmp_path / "copies")
    monkeypatch.chdir(tmp_path / "copies")


FAST = ("--config.likelihood.solver.name=ode", "--config.likelihood.solver.ode.method=midpoint")
FAST += ("--config.likelihood.solver.ode.steps=4", "--config.likelihood.audit=0")
VARIATIONAL = ("--config.likelihood.dequantization=variational", "--config.likelihood.dequantizer.steps=2")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("two_moons", ("--n=4",)),
        ("digits", ("--class=3", "--n=3", *FAST)),
        ("integers", ("--n=3", *FAST, *VARIATIONAL, "--config.likelihood.dequantizer.width=4")),
    ],
)
def test_the_likelihood_of_held_out_data_is_what_was_recorded(copies, name, arguments):
    """The command that made the record gives it again: the same held-out samples, dequantizer and solver."""
    (before,) = Path(name).glob("likelihood_*.json")
    assert main(["likelihood", f"--workdir={name}", "--quiet", f"--output={name}/again", *arguments]) == 0
    wanted, found = (json.loads(path.read_text()) for path in (before, Path(name, "again.json")))
    for key in ("mean", "nfe", "vjps"):
        assert found[key] == pytest.approx(wanted[key], rel=TOLERANCE), key
    values = [np.load(path.with_suffix(".npz"))["bits_per_dim"] for path in (before, Path(name, "again.json"))]
    np.testing.assert_allclose(values[1], values[0], rtol=TOLERANCE)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.quick("early", "two_moons", "learned_variance")
def test_training_goes_on_and_the_run_says_from_where(copies, name, capsys):
    step = load(name).step
    for steps in (13, 14):
        assert main(["train", f"--workdir={name}", f"--config.training.steps={steps}", "--quiet"]) == 0
        assert f"an earlier version trained it to step {step}:" in capsys.readouterr().out
        assert (load(name).step, load_begun(Path(name))) == (steps, Begun(1, step))


def test_nothing_here_says_where_it_was_made():
    for path in BEFORE.rglob("*.json"):
        assert "/work" not in path.read_text(), path
        assert "/tmp" not in path.read_text(), path
