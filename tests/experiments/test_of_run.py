"""What the commands do for a run, from Python."""

import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from score_sde import DDIM, UniPC, bits_per_dim, experiments, load
from score_sde.cli import main
from score_sde.data import DATASETS
from score_sde.likelihood import DEQUANTIZATIONS, prior_mismatch
from score_sde.model import ClassNeeded, score_for_class
from score_sde.run import NoTuned, load_tuned
from score_sde.score import ClassScore
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.transitions import VARIANCES

pytestmark = pytest.mark.usefixtures("undrawn")

RUNS = Path(__file__).parent.parent / "data" / "runs"
FAST = {"solver": ProbabilityFlow(method="midpoint", steps=2), "audit": 0}


@pytest.fixture
def digits(tmp_path):
    """A run on digits, told their classes."""
    shutil.copytree(RUNS / "digits", tmp_path / "digits")
    return load(tmp_path / "digits")


@pytest.fixture
def moons(tmp_path):
    shutil.copytree(RUNS / "two_moons", tmp_path / "moons")
    return load(tmp_path / "moons")


def test_samples_are_those_of_the_command(digits, tmp_path):
    sample = experiments.draw_samples(digits, 5, UniPC(steps=4), class_=3, seed=7, batch_size=2, denoise=True, clip=True)
    how = ["--count=5", "--solver=unipc", "--nfe=5", "--class=3", "--seed=7", "--batch_size=2", "--denoise", "--clip"]
    solver = ["--config.solver.unipc.steps=4"]
    how = [*[h for h in how if h != "--nfe=5"], *solver]
    assert main(["sample", f"--workdir={digits.folder}", f"--output={tmp_path / 'x'}", "--quiet", *how]) == 0
    with np.load(tmp_path / "x.npz") as saved:
        np.testing.assert_array_equal(saved["samples"], digits.model.data.decode(sample.x).numpy())
    assert sample.denoised


def test_a_sample_does_not_depend_on_the_batch(moons):
    whole, parts = (experiments.draw_samples(moons, 5, DDIM(steps=3), batch_size=size) for size in (5, 2))
    torch.testing.assert_close(whole.x, parts.x)
    assert whole.nfe == parts.nfe == 3


def test_without_a_solver_the_runs_own_is_used(moons):
    assert experiments.draw_samples(moons, 2).nfe == moons.config["solver"]["euler_maruyama"]["steps"]


@pytest.mark.parametrize(("count", "size"), [(0, 1), (2.5, 1), (3, 0)])
def test_numbers_of_samples_are_positive(moons, count, size):
    with pytest.raises(ValueError, match="must be"):
        experiments.draw_samples(moons, count, DDIM(steps=2), batch_size=size)


def test_integers_are_clipped_to_their_own_range(digits):
    with pytest.raises(ValueError, match="is clipped to no other range"):
        experiments.draw_samples(digits, 1, DDIM(steps=2), clip=(0.0, 1.0))


def test_points_are_clipped_to_a_range_in_their_own_units(moons):
    sample = experiments.draw_samples(moons, 20, DDIM(steps=4), clip=(-0.5, 0.25), seed=1)
    values = moons.model.data.decode(sample.x)
    assert values.min() >= -0.5 - 1e-2
    assert values.max() <= 0.25 + 1e-2


def test_the_likelihood_of_a_run_tells_the_mismatch_of_its_prior(digits):
    """The model of a run knows the moments of its training data, also where it is told a class."""
    values = DATASETS["digits"]().test.batch(torch.arange(2)).values
    record = bits_per_dim(ClassScore(digits.model, 2), values, **FAST)
    assert record.prior_mismatch == prior_mismatch(digits.model.sde, digits.model.moments)


@pytest.mark.slow
def test_every_dequantization_and_bound_is_measured(digits):
    values = DATASETS["digits"]().test.batch(torch.arange(2)).values
    dequantizer = experiments.learned_dequantizer(digits, lambda: DATASETS["digits"]().train, steps=1, batch_size=2)
    likelihood = partial(bits_per_dim, probes=2, **FAST)
    records = experiments.measure_bounds(digits, values, dequantizer, class_=1, likelihood=likelihood, seed=1)
    fixed = [f"ODE, {name.replace('_', ' ')}" for name in DEQUANTIZATIONS]
    assert {*fixed, "ODE, variational", "ODE, uniform, truncation", "continuous time"} <= set(records)
    assert sum("chain" in name for name in records) == len(VARIANCES) - (not digits.model.learned_variance)
    assert all(np.isfinite(record.mean) for record in records.values())
    uniform = records["ODE, uniform"]
    assert uniform.per_sample == bits_per_dim(ClassScore(digits.model, 1), values, probes=2, seed=1, **FAST).per_sample
    assert "averaged weights of step 12" in uniform.sentence()


def test_bounds_are_for_integers(moons):
    with pytest.raises(ValueError, match="the data of this run is continuous"):
        experiments.measure_bounds(moons, torch.zeros(2, 2), None)


@pytest.mark.slow
def test_a_dequantization_is_learned_once_for_the_same_options(digits):
    read = []

    def train():
        read.append(1)
        return DATASETS["digits"]().train

    learned = partial(experiments.learned_dequantizer, digits, train, width=4, couplings=2, batch_size=2)
    first, second = (learned(steps=1) for _ in range(2))
    assert len(read) == 1
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name])
    learned(steps=2)
    assert len(read) == 2


@pytest.mark.slow
def test_solvers_are_compared_by_held_out_data_of_the_class(digits):
    data = DATASETS["digits"]()
    result = experiments.compare_solvers(digits, data, {"ddim": DDIM()}, [2, 4], class_=3, samples=4)
    assert [m.budget for m in result.measurements] == [2, 4]
    assert len(result.data) == int((data.test.classes == 3).sum())


def test_choices_are_kept_in_the_run(moons, tmp_path):
    tuned = experiments.tune_solvers(moons, [3], folder=tmp_path, pilot=8, trials=10)
    kept = load_tuned(tmp_path)
    assert kept.choices[0].solver == tuned.choices[0].solver
    assert not (tmp_path / "moons" / "tuned.json").samefile(tmp_path / "tuned.json")


@pytest.mark.slow
def test_choices_for_clipped_samples_are_kept_apart(moons, tmp_path):
    shutil.copy(moons.folder / "config.json", tmp_path / "config.json")
    ends = (-0.5, 0.25)
    tuned = experiments.tune_solvers(moons, [3], folder=tmp_path, pilot=8, trials=10, clip=ends)
    with pytest.raises(NoTuned, match="clip"):
        load_tuned(tmp_path)
    experiments.tune_solvers(moons, [3], folder=tmp_path, pilot=8, trials=10, t_end=0.01)
    limits = experiments.sampling.clip_limits(experiments.sampling.clipped_data(moons.model.data, ends))
    assert load_tuned(tmp_path, clip=limits).choices[0].solver == tuned.choices[0].solver
    assert load_tuned(tmp_path, t_end=0.01).choices


def test_the_command_finds_what_was_tuned_for_its_clipping(moons, capsys):
    (moons.folder / "tuned.json").unlink()
    how = [f"--workdir={moons.folder}", "--clip=-0.5,0.25", "--quiet"]
    assert main(["tune", *how, "--nfe=3", "--pilot=8", "--trials=10"]) == 0
    (use,) = re.findall(r"^next: +score-sde (.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert main([*shlex.split(use), "--count=2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["sample", how[0], "--solver=tuned", "--count=2", "--quiet"]) == 2
    assert "only for clip" in capsys.readouterr().err


def test_a_class_is_one_that_the_model_knows(digits, moons, monkeypatch):
    with pytest.raises(ValueError, match="there is no class 10: the model has classes 0 to 9"):
        experiments.draw_samples(digits, 1, DDIM(steps=1), class_=10)
    with pytest.raises(ValueError, match="there is no class 0: the model was trained without classes"):
        experiments.tune_solvers(moons, [3], class_=0)
    monkeypatch.setattr(digits.model, "knows_no_class", False)
    with pytest.raises(ClassNeeded, match="must be told one of its 10 classes"):
        score_for_class(digits.model, None)


def test_solvers_tuned_for_clipped_samples_are_kept_beside_the_others(moons, capsys):
    """The run has solvers for 3 and 5 evaluations, tuned without clipping: they stand in until there are others."""
    clip = "--clip=-0.5,0.25"
    sample = ["sample", f"--workdir={moons.folder}", "--solver=tuned", "--nfe=3", "--count=2", "--quiet", clip]
    assert main(sample) == 0
    said = f"warning: the solvers for 3, 5 evaluations were tuned without clipping: score-sde tune --workdir={moons.folder}"
    assert f"{said} {clip} --nfe=3,5" in capsys.readouterr().err
    before = load_tuned(moons.folder)
    tune = ["tune", f"--workdir={moons.folder}", "--nfe=3", "--pilot=8", "--trials=10", "--quiet", clip]
    assert main(tune) == 0
    assert f"score-sde sample --workdir={moons.folder} --solver=tuned --nfe=3 {clip}" in capsys.readouterr().out
    assert main(sample) == 0
    assert "the solvers for 5 evaluations were tuned without clipping" in capsys.readouterr().err
    assert load_tuned(moons.folder) == before
