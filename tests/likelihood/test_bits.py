"""The record of a likelihood: its parts against what repeated draws, closed forms and finer solutions show."""

import json
import math

import numpy as np
import pytest
import torch

from score_sde import VESDE, VPSDE, DataSpec, GaussianMixture, Hutchinson, ProbabilityFlow, SolverError, bits_per_dim
from score_sde.data import DataError
from score_sde.likelihood import DualWeighted
from score_sde.solvers.time_grids import ExplicitGrid
from score_sde.tensors import SampleNoise
from tests.oracles import DoubleWellSDE, mixture

SPEC = DataSpec((2,), levels=16)
CHEAP = ProbabilityFlow(method="rk4", steps=10, grid="log_snr")
TRUTH = GaussianMixture(torch.tensor([[-0.4, -0.3], [0.3, 0.4]], dtype=torch.float64), torch.tensor([0.02, 0.015]).double())


def unit_bits(score, x):
    """-log2 of the density at t_min per dimension, in closed form."""
    return -score.log_prob(x, score.sde.t_min) / (x[0].numel() * math.log(2))


def covered(errors, stderrs):
    """How many of the 95 % intervals contain the truth."""
    return sum(abs(error) < 1.96 * stderr for error, stderr in zip(errors, stderrs, strict=True))


def points_of(values, seed):
    u = SampleNoise(seed, values.shape, purpose="dequantization", dtype=torch.float64).uniform()
    return SPEC.dequantized(values, u)


@pytest.mark.slow
def test_intervals_cover_the_truth_over_draws_of_the_data():
    """60 data sets of 100 integers; the truth is the mean of a hundred thousand, by the closed form."""
    score = TRUTH.score(VPSDE())
    many = SPEC.quantized(TRUTH.sample(100_000, seed=1000))
    expected = (unit_bits(score, points_of(many, 1000)) - math.log2(SPEC.slope)).mean().item()
    records = []
    for seed in range(60):
        values = SPEC.quantized(TRUTH.sample(100, seed=seed))
        how = {"divergence": "exact", "solver": CHEAP, "audit": 0, "seed": seed}
        records.append(bits_per_dim(score, values, data=SPEC, **how))
    assert covered([r.mean - expected for r in records], [r.stderr for r in records]) >= 54


@pytest.mark.slow
@pytest.mark.parametrize("probes", [1, 4])
def test_intervals_cover_the_truth_over_draws_of_the_probes(probes):
    """The same 64 points each time; the truth is what the exact divergence gives. One probe's noise is known from the audit."""
    score, x = mixture((4,)).score(VPSDE()), mixture((4,)).sample(64, seed=1)
    how = {"data": DataSpec((4,)), "solver": CHEAP}
    expected = bits_per_dim(score, x, divergence="exact", audit=0, **how).mean
    records = [bits_per_dim(score, x, probes=probes, seed=seed, **how) for seed in range(60)]
    assert covered([r.mean - expected for r in records], [r.stderr_probe for r in records]) >= 54
    seen = np.std([r.mean for r in records])
    assert np.median([r.stderr_probe for r in records]) == pytest.approx(seen, rel=0.25)


@pytest.mark.slow
def test_intervals_cover_the_truth_over_draws_of_dequantization():
    score, values = TRUTH.score(VPSDE()), SPEC.quantized(TRUTH.sample(64, seed=1))
    draws = torch.stack([unit_bits(score, points_of(values, 1000 + seed)).mean() for seed in range(2000)])
    expected = (draws.mean() - math.log2(SPEC.slope)).item()
    how = {"data": SPEC, "divergence": "exact", "solver": CHEAP}
    records = [bits_per_dim(score, values, seed=seed, **how) for seed in range(60)]
    assert covered([r.mean - expected for r in records], [r.stderr_dequantization for r in records]) >= 54
    assert np.median([r.stderr_dequantization for r in records]) == pytest.approx(draws.std().item(), rel=0.25)


def test_parts_of_the_standard_error():
    """Their squares add up; a part that is not there is 0, one that was not measured is None."""
    score, values = TRUTH.score(VPSDE()), SPEC.quantized(TRUTH.sample(50, seed=1))
    record = bits_per_dim(score, values, data=SPEC, solver=CHEAP)
    parts = (record.stderr_data, record.stderr_dequantization, record.stderr_probe)
    assert min(parts) > 0
    assert sum(part**2 for part in parts) == pytest.approx(record.stderr**2)
    exact = bits_per_dim(score, values, data=SPEC, solver=CHEAP, divergence="exact")
    assert exact.stderr_probe == 0
    unknown = bits_per_dim(score, values, data=SPEC, solver=CHEAP, audit=0)
    assert (unknown.stderr_probe, unknown.stderr_dequantization, unknown.stderr_data, unknown.solver_error) == (None,) * 4
    assert unknown.stderr == record.stderr
    continuous = bits_per_dim(score, TRUTH.sample(9), data=DataSpec((2,)), solver=CHEAP)
    assert continuous.stderr_dequantization == 0


def test_a_single_sample_has_no_standard_error(tmp_path):
    record = bits_per_dim(TRUTH.score(VPSDE()), TRUTH.sample(1), data=DataSpec((2,)), solver=CHEAP)
    assert math.isnan(record.stderr)
    record.save(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["stderr"] is None


VE = VESDE(sigma_min=0.03, sigma_max=500.0)
LEVELS = torch.linspace(float(VE.log_snr(VE.T)), float(VE.log_snr(VE.t_min)), 9, dtype=torch.float64)


@pytest.mark.parametrize(
    "solver",
    [
        DualWeighted(steps=24, doublings=0),
        ProbabilityFlow(method="rk4", steps=8, grid="log_snr"),
        ProbabilityFlow(method="rk4", grid=ExplicitGrid(tuple(VE.inverse_log_snr(LEVELS).tolist()))),
        ProbabilityFlow(method="rk45", rtol=1e-2, atol=1e-2),
    ],
    ids=["dual_weighted", "rk4", "rk4 on a list of times", "rk45"],
)
def test_the_audit_measures_the_solver_s_error(solver):
    """Root mean square and mean difference from the closed form, the prior being that of the noised data nearly."""
    truth = mixture((4,), seed=2)
    score, x = truth.score(VE), truth.sample(64, seed=3)
    record = bits_per_dim(score, x, data=DataSpec((4,)), divergence="exact", solver=solver, audit=64)
    error = torch.tensor(record.per_sample, dtype=torch.float64) - unit_bits(score, x)
    assert record.solver_error == pytest.approx(error.square().mean().sqrt().item(), rel=0.3)
    assert record.solver_bias == pytest.approx(error.mean().item(), rel=0.5, abs=0.3 * record.solver_error)
    assert record.solver_error > 1e-4


def test_continuous_data_in_nats_of_its_own_units():
    """Kelvin and metres: the density of the data as it came, the scaling's log-determinant included."""
    spec = DataSpec((2,), data_range=(250.0, 330.0))
    values = spec.unscale(TRUTH.sample(40, seed=1))
    record = bits_per_dim(TRUTH.score(VPSDE()), values, data=spec, divergence="exact", batch_size=16)
    own = GaussianMixture(spec.unscale(TRUTH.means), 40.0**2 * TRUTH.variances)
    assert record.nats == pytest.approx(-own.log_prob(values).mean().item(), abs=0.01)
    assert record.nats_per_dim == pytest.approx(record.nats / 2)
    assert record.mean == pytest.approx(record.nats_per_dim / math.log(2))
    said = record.sentence()
    for words in (f"{record.nats_per_dim:.4f} +- ", "nats/dim", "in the data's units", "continuous data with 2 dimensions"):
        assert words in said
    assert "dequantization" not in said
    assert "bits/dim" not in said


def test_a_sentence_with_all_its_parts():
    score, values = TRUTH.score(VPSDE()), SPEC.quantized(TRUTH.sample(40, seed=1))
    record = bits_per_dim(score, values, data=SPEC, name="the mixture")
    for words in (
        f"{record.mean:.4f} +- {record.stderr:.4f} bits/dim (standard error over 40 samples: data {record.stderr_data:.4f}, ",
        f"dequantization {record.stderr_dequantization:.4f}, probes {record.stderr_probe:.4f}; solver error ",
        "by solving 32 samples more finely",
        "2 dimensions and 16 levels, uniform dequantization",
        "probability-flow ODE of the VPSDE by multistep path of",
        "t_min = 1e-05, 1 Rademacher probe (Hutchinson)",
        f"{record.nfe:.4g} network evaluations and {record.vjps:.4g} vector-Jacobian products per sample",
        "batches of 128, seed 0; the mixture)",
    ):
        assert words in record.sentence(), words


def test_files_hold_the_record_and_each_sample(tmp_path):
    score, values = TRUTH.score(VPSDE()), TRUTH.sample(7, seed=1)
    record = bits_per_dim(score, values, data=DataSpec((2,)), divergence=Hutchinson(3), solver=CHEAP)
    record.save(tmp_path / "a.json", {"step": 3})
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["sentence"] == record.sentence()
    assert saved["step"] == 3
    assert (saved["nats"], saved["nats_per_dim"], saved["values"]) == (record.nats, record.nats_per_dim, "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["nats_per_dim"] == pytest.approx(np.array(record.per_sample) * math.log(2))
        assert set(arrays) == {"bits_per_dim", "nats_per_dim", "probe_stderr"}


def test_an_sde_whose_prior_is_not_known_is_refused():
    class Well:
        sde = DoubleWellSDE()

    with pytest.raises(TypeError, match="DoubleWellSDE has a drift that is not linear"):
        bits_per_dim(Well(), torch.zeros(2, 1), data=DataSpec((1,)))


@pytest.mark.parametrize(
    "target", [0.05, pytest.param(0.01, marks=pytest.mark.slow), pytest.param(0.002, marks=pytest.mark.slow)]
)
def test_a_target_error_is_reached(target):
    """What is reported, and what the closed form says: each sample within the target, and the mean of the noise as well."""
    score, x = mixture((16,)).score(VPSDE()), mixture((16,)).sample(128, seed=4)
    spec = DataSpec((16,))
    record = bits_per_dim(score, x, data=spec, target_error=target)
    assert record.stderr_probe <= target
    assert record.solver_error <= target
    solved = bits_per_dim(score, x, data=spec, divergence="exact", audit=0, solver=_solver_of(record))
    error = torch.tensor(solved.per_sample, dtype=torch.float64) - unit_bits(score, x)
    assert error.square().mean().sqrt() <= target
    assert abs(record.mean - unit_bits(score, x).mean().item()) < target + 3 * record.stderr_probe
    assert f"(chosen for an error of {target:g} bits/dim)" in record.sentence()


def _solver_of(record):
    """The solver from its description: a number of steps and a tolerance."""
    words = record.solver.split()
    return DualWeighted(steps=int(words[words.index("steps") - 1]), tolerance=float(words[words.index("above") + 1]))


@pytest.mark.parametrize("divergence", [pytest.param("hutchinson", marks=pytest.mark.slow), "hutchinson_orthogonal"])
@pytest.mark.slow
def test_a_smaller_target_takes_more_probes(divergence):
    score, x = mixture((16,)).score(VPSDE()), mixture((16,)).sample(64, seed=4)
    records = [
        bits_per_dim(score, x, data=DataSpec((16,)), divergence=divergence, probes=3, target_error=target)
        for target in (0.1, 0.012)
    ]
    assert records[0].divergence.startswith("3 ")
    probes = int(records[1].divergence.split()[0])
    assert 3 < probes < 19
    assert records[1].vjps == pytest.approx(probes * records[1].nfe / 2, rel=0.02)  # two passes share the products
    assert records[1].stderr_probe <= 0.012
    mean = sum(error**2 for error in records[1].per_sample_probe_stderr) / 64
    assert records[1].stderr_probe == pytest.approx(math.sqrt(mean / 64))


@pytest.mark.slow
def test_intervals_cover_the_truth_when_probes_were_added():
    score, x = mixture((16,)).score(VPSDE()), mixture((16,)).sample(12, seed=1)
    how = {"data": DataSpec((16,))}
    expected = bits_per_dim(score, x, divergence="exact", audit=0, **how).mean
    records = [bits_per_dim(score, x, target_error=0.03, seed=seed, **how) for seed in range(25)]
    probes = [int(record.divergence.split()[0]) for record in records if record.divergence != "the exact trace"]
    assert len(probes) > 20
    assert np.median(probes) > 1
    errors = [r.mean - expected for r in records]
    assert covered(errors, [math.hypot(r.stderr_probe, 0.005) for r in records]) >= 22  # the solvers are not the same


@pytest.mark.slow
def test_the_exact_divergence_is_taken_where_it_is_cheaper():
    """8 coordinates and a target that hundreds of probes would be needed for."""
    score, x = mixture((8,)).score(VPSDE()), mixture((8,)).sample(8, seed=4)
    record = bits_per_dim(score, x, data=DataSpec((8,)), target_error=1e-3)
    assert record.stderr_probe == 0
    assert record.divergence == "the exact trace"
    assert record.vjps == 8 * record.nfe
    assert record.mean == pytest.approx(unit_bits(score, x).mean().item(), abs=2e-3)


@pytest.mark.slow
def test_a_target_out_of_reach_is_a_named_error():
    single, x = mixture((1,), torch.float32).score(VPSDE()), mixture((1,)).sample(2, seed=4)
    with pytest.raises(SolverError, match=r"1e-09 bits/dim is out of reach: with [0-9]+ steps"):
        bits_per_dim(single, x.float(), data=DataSpec((1,)), divergence="exact", target_error=1e-9)


def test_probes_are_added_to_hutch_plus_plus_as_well():
    score, x = mixture((16,)).score(VPSDE()), mixture((16,)).sample(24, seed=4)
    how = {"data": DataSpec((16,)), "divergence": "hutch++"}
    first = bits_per_dim(score, x, audit=24, **how)
    assert first.divergence == "3 probes (Hutch++)"
    record = bits_per_dim(score, x, target_error=first.stderr_probe / 1.2, **how)
    assert record.divergence == "7 probes (Hutch++)"
    assert record.stderr_probe <= first.stderr_probe / 1.2


def test_the_truncation_bound_is_one_and_no_more_than_the_noise_away():
    """-log of the density at 0 lies below it in the mean, for the exact score by no more than a few hundredths of a bit."""
    for t_min in (1e-4, 1e-2):
        score, x = TRUTH.score(VPSDE(t_min=t_min)), TRUTH.sample(2000, seed=1)
        how = {"data": DataSpec((2,)), "divergence": "exact", "solver": CHEAP, "audit": 0, "batch_size": 2000}
        bound = torch.tensor(bits_per_dim(score, x, truncation=True, **how).per_sample, dtype=torch.float64)
        gap = bound + TRUTH.log_prob(x) / (2 * math.log(2))
        error = gap.std() / 2000**0.5
        assert gap.mean() > -4 * error
        assert gap.mean() < 0.1 + 4 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audit": -1}, "audit must be at least 0, got -1"),
        ({"target_error": 0.0}, "target_error must be positive"),
        ({"target_error": 0.1, "audit": 0}, "target_error needs an audit"),
        ({"target_error": 0.1, "solver": CHEAP}, "not both"),
        ({"dequantization": "truncated_normal", "truncation": True}, "truncation is for other dequantizations"),
        ({"data": DataSpec((2,)), "values": TRUTH.sample(2), "importance_samples": 2}, "importance samples are for integers"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_bad_options_are_refused(options, message):
    values = options.pop("values", torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=message):
        bits_per_dim(TRUTH.score(VPSDE()), values, **{"data": SPEC, **options})


def test_integers_without_levels_are_refused():
    with pytest.raises(DataError, match="the values are integers, and the model is of continuous data"):
        bits_per_dim(TRUTH.score(VPSDE()), torch.zeros(2, 2, dtype=torch.uint8), data=DataSpec((2,)))
