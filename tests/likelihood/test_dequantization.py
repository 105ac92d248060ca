"""bits/dim against densities and entropies that are known."""

import json
import math

import numpy as np
import pytest
import torch

from score_sde import VESDE, VPSDE, DataSpec, GaussianMixture, Hutchinson, ProbabilityFlow, SubVPSDE, bits_per_dim
from score_sde.data import DataError, Moments
from score_sde.likelihood import DEQUANTIZATIONS, DualWeighted, prior_mismatch
from score_sde.tensors import SampleNoise
from tests.oracles import cell_probabilities

SPEC = DataSpec((2,), levels=16)
SOLVER = ProbabilityFlow(rtol=1e-5, atol=1e-5)


def smooth_model():
    """A mixture well inside [-1, 1], in model coordinates."""
    means = torch.tensor([[-0.4, -0.3], [0.3, 0.4]], dtype=torch.float64)
    return GaussianMixture(means, [0.02, 0.015])


def integers(count=200, spec=SPEC):
    return spec.quantized(smooth_model().sample(count, seed=5))


def test_each_sample_is_minus_log2_of_the_density_at_its_dequantized_point():
    """The same dequantization noise, the mixture's own density at t_min, the bin's width: no ODE."""
    score, values = smooth_model().score(VPSDE()), integers(20)
    record = bits_per_dim(score, values, data=SPEC, divergence="exact", solver=SOLVER, seed=3)
    u = SampleNoise(3, values.shape, purpose="dequantization", dtype=torch.float64).uniform()
    points = -1 + (values + u) * 2 / 16
    expected = -(score.log_prob(points, 1e-5) / math.log(2) + 2 * math.log2(2 / 16)) / 2
    torch.testing.assert_close(torch.tensor(record.per_sample, dtype=torch.float64), expected, rtol=0, atol=1e-3)
    assert record.mean == pytest.approx(sum(record.per_sample) / 20)
    assert record.stderr == pytest.approx(torch.tensor(record.per_sample).std().item() / 20**0.5, rel=1e-5)


def test_it_bounds_the_entropy_of_the_discrete_model_from_above():
    """The cell probabilities of the mixture, by erf, give the exact code length; dequantization costs a little more."""
    truth, values = smooth_model(), integers(400)
    edges = torch.linspace(-1, 1, 17, dtype=torch.float64)
    normal = torch.distributions.Normal(truth.means[..., None], truth.variances.sqrt()[..., None])
    cells = normal.cdf(edges).diff(dim=-1)  # (component, coordinate, level)
    probability = sum(weight * cells[k, 0][values[:, 0]] * cells[k, 1][values[:, 1]] for k, weight in enumerate(truth.weights))
    exact = -probability.log2() / 2
    record = bits_per_dim(truth.score(VPSDE()), values, data=SPEC, divergence="exact", solver=SOLVER)
    gap = torch.tensor(record.per_sample, dtype=torch.float64) - exact
    assert -0.002 < gap.mean() < 0.15
    assert gap.mean() > -3 * gap.std() / 20


EIGHT = DataSpec((1,), levels=8)
ON_8_LEVELS = GaussianMixture(torch.tensor([[-0.35], [0.3]], dtype=torch.float64), [0.004, 0.012], [0.4, 0.6])


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_min=1e-3, sigma_max=20.0)], ids=["vp", "ve"])
def test_uniform_dequantization_falls_with_its_importance_samples_to_the_exact_code_length(sde):
    """On 8 levels, exact by erf: averaged over the model's own levels the bound falls with K and stays above."""
    score = ON_8_LEVELS.score(sde)
    probability = cell_probabilities(score, EIGHT, sde.t_min)
    exact = -(probability * probability.log2()).sum() / probability.sum()
    values, repeats = torch.arange(8).repeat_interleave(100)[:, None], 100
    bounds = []
    for samples in (1, 4, 16):
        how = {"data": EIGHT, "divergence": "exact", "solver": ProbabilityFlow(method="rk4", steps=24, grid="log_snr")}
        bits = torch.tensor(bits_per_dim(score, values, importance_samples=samples, batch_size=800, **how).per_sample)
        bounds.append((probability * bits.reshape(8, repeats).mean(1)).sum() / probability.sum())
    gaps = torch.stack(bounds) - exact
    assert gaps[0] > gaps[1] > gaps[2] > -1e-3
    assert gaps[2] < 0.15 * gaps[0]
    assert gaps[0] > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_truncated_normal_dequantization_bounds_the_mass_of_the_bins(noise):
    """t_min is where the noise is 0.02 or 0.2 wide, beside bins of 0.25; the bins' masses are exact by erf."""
    sde = VESDE(sigma_min=noise, sigma_max=20.0)
    score = ON_8_LEVELS.score(sde)
    probability = cell_probabilities(score, EIGHT, sde.t_min)
    values = torch.arange(8).repeat_interleave(200)[:, None]
    how = {"data": EIGHT, "divergence": "exact", "solver": ProbabilityFlow(method="rk4", steps=24, grid="log_snr")}
    gaps = {}
    for samples in (1, 16):
        record = bits_per_dim(
            score, values, dequantization="truncated_normal", importance_samples=samples, batch_size=1600, **how
        )
        bits = torch.tensor(record.per_sample).reshape(8, 200)
        gaps[samples] = ((bits.mean(1) + probability.log2()) * probability).sum() / probability.sum()
        error = (probability * bits.std(1) / 200**0.5).square().sum().sqrt()
        assert gaps[samples] > -4 * error
    assert gaps[16] < gaps[1]


@pytest.mark.parametrize(
    ("sde", "bound"),
    [
        (VESDE(sigma_min=0.02, sigma_max=2000.0), 1e-3),  # a prior that differs from the noised data by less than the bound
        (SubVPSDE(t_min=0.05), 0.02),  # alpha is 0.985 at t_min; the prior is off by alpha(T) = 0.007
    ],
    ids=["ve", "subvp"],
)
def test_truncated_normal_dequantization_loses_nothing_on_a_lattice(sde, bound):
    """Points at the centres of the bins: their probabilities themselves, where uniform points cost several bits more."""
    probability = torch.tensor([0.02, 0.1, 0.2, 0.28, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)
    centres = (torch.arange(8, dtype=torch.float64) + 0.5) / 4 - 1
    score = GaussianMixture(centres[:, None], torch.zeros(8, dtype=torch.float64), probability).score(sde)
    values = torch.arange(8)[:, None]
    how = {"data": EIGHT, "divergence": "exact", "solver": ProbabilityFlow(rtol=1e-5, atol=1e-5)}
    record = bits_per_dim(score, values, dequantization="truncated_normal", **how)
    torch.testing.assert_close(torch.tensor(record.per_sample).double(), -probability.log2(), rtol=0, atol=bound)
    assert bits_per_dim(score, values, **how).mean > record.mean + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(2,), (3, 2), (1, 4, 4), (1, 2, 2, 2)])
@pytest.mark.parametrize("name", DEQUANTIZATIONS)
def test_points_lie_in_their_bins_and_q_is_a_density_there(name, event, dtype):
    """Inside the bin whatever the noise; E 1/q over draws is the volume of the bin."""
    spec, sde = DataSpec(event, levels=4), VESDE(sigma_min=0.3, sigma_max=20.0)
    integers = torch.randint(4, (2000, *event))
    noise = SampleNoise(0, integers.shape, purpose="dequantization", dtype=dtype)
    x, log_q = DEQUANTIZATIONS[name](integers.to(dtype), noise, spec, sde)
    assert (x.dtype, x.shape, log_q.shape) == (dtype, integers.shape, (2000,))
    assert ((x - spec.dequantized(integers.double(), 0.5)).abs() <= spec.slope / 2 + 1e-6).all()
    volume = (-log_q - spec.log_det).exp()  # in units of the bin's own
    assert abs(volume.mean() - 1) < 5 * volume.std() / 2000**0.5 + 1e-6


def test_the_ends_of_the_uniform_numbers_are_safe():
    class Ends:
        dtype = torch.float64

        def uniform(self):
            return torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)

    x, log_q = DEQUANTIZATIONS["truncated_normal"](torch.zeros(1, 2), Ends(), SPEC, VPSDE())
    assert x.isfinite().all()
    assert log_q.isfinite().all()


def test_importance_samples_of_an_estimate_are_warned_of():
    score, values = smooth_model().score(VPSDE()), integers(3)
    how = {"data": SPEC, "importance_samples": 2, "solver": ProbabilityFlow(method="midpoint", steps=6, grid="log_snr")}
    with pytest.warns(UserWarning, match="biases an average of importance samples"):
        record = bits_per_dim(score, values, **how)
    assert record.nfe == 24
    assert "with 2 importance samples" in record.sentence()


def test_uniform_data_costs_log2_of_its_levels():
    """A density that is flat over the whole range: every level costs log2(levels), up to the smoothing at the two ends."""
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1
    flat = GaussianMixture(grid[:, None], torch.full((400,), (1 / 200) ** 2, dtype=torch.float64))
    spec = DataSpec((1,), levels=4)
    values = torch.tensor([[1], [2]] * 4)
    record = bits_per_dim(flat.score(VPSDE()), values, data=spec, divergence="exact", solver=SOLVER)
    assert record.mean == pytest.approx(2.0, abs=0.01)


def test_every_sample_once_whatever_the_batch():
    score, values = smooth_model().score(VPSDE()), integers(11)
    options = {"data": SPEC, "solver": ProbabilityFlow(method="rk4", steps=12, grid="log_snr")}
    whole = bits_per_dim(score, values, **options)
    parts = bits_per_dim(score, values, batch_size=4, **options)
    assert whole.samples == parts.samples == 11
    assert parts.per_sample == pytest.approx(whole.per_sample, abs=1e-9)
    assert whole.nfe == parts.nfe == 48


def test_probes_reduce_the_spread_and_keep_the_mean():
    values = integers(1).expand(300, 2)
    correlated = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[[0.1, 0.08], [0.08, 0.1]]]).double())
    options = {"data": SPEC, "solver": ProbabilityFlow(method="rk4", steps=16, grid="log_snr")}
    exact = bits_per_dim(correlated.score(VPSDE()), values, divergence="exact", **options)
    residual = [
        torch.tensor(bits_per_dim(correlated.score(VPSDE()), values, probes=probes, **options).per_sample)
        - torch.tensor(exact.per_sample)
        for probes in (1, 4)
    ]
    for noise in residual:
        assert abs(noise.mean()) < 4 * noise.std() / 300**0.5
    assert (residual[1].std() / residual[0].std()).item() == pytest.approx(0.5, rel=0.3)


def test_divergence_by_name_or_as_an_object():
    score, values = smooth_model().score(VPSDE()), integers(6)
    options = {"data": SPEC, "solver": ProbabilityFlow(method="rk4", steps=8, grid="log_snr")}
    named = bits_per_dim(score, values, divergence="hutchinson_gaussian", probes=3, **options)
    given = bits_per_dim(score, values, divergence=Hutchinson(3, "gaussian"), **options)
    assert named.per_sample == given.per_sample
    assert named.divergence == given.divergence == "3 Gaussian probes (Hutchinson)"
    assert named.vjps == 3 * named.nfe
    assert "the exact trace" in bits_per_dim(score, values, divergence="exact", **options).sentence()


def test_continuous_data_is_measured_in_its_own_units():
    """The same points in units ten times as large have a density ten times as small in each coordinate."""
    score = smooth_model().score(VPSDE())
    x = smooth_model().sample(10, seed=1)
    small = bits_per_dim(score, x, data=DataSpec((2,)), divergence="exact", solver=SOLVER)
    large = bits_per_dim(score, 10 * x, data=DataSpec((2,), data_range=(-10.0, 10.0)), divergence="exact", solver=SOLVER)
    assert large.mean - small.mean == pytest.approx(math.log2(10), abs=1e-6)
    assert small.dequantization == "none"
    assert small.mean == pytest.approx(-smooth_model().log_prob(x).mean().item() / 2 / math.log(2), abs=1e-3)


def test_record_says_how_it_was_obtained(tmp_path):
    record = bits_per_dim(smooth_model().score(VPSDE()), integers(4), data=SPEC, solver=SOLVER, seed=7, probes=2)
    for said in (f"{record.mean:.4f}", "4 samples", "16 levels", "uniform", "dopri5", "1e-05", "2 Rademacher probes", "seed 7"):
        assert said in record.sentence(), said
    record.save(tmp_path / "record.json", {"step": 3})
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved["mean"] == record.mean
    with np.load(tmp_path / saved["values"], allow_pickle=False) as values:
        assert values["bits_per_dim"].tolist() == list(record.per_sample)
        assert values["probe_stderr"].tolist() == list(record.per_sample_probe_stderr)
    assert saved["step"] == 3


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (ProbabilityFlow(method="rk4", steps=30, grid="quadratic"), "rk4, 30 steps (quadratic)"),
        (ProbabilityFlow(method="explicit_adams", steps=30, grid="log_snr"), "explicit_adams, 30 steps (log_snr)"),
        (ProbabilityFlow(rtol=2e-3, atol=1e-3), "dopri5 with steps shared by a batch, rtol = 0.002, atol = 0.001"),
        (ProbabilityFlow(method="rk45", rtol=2e-3, atol=1e-3), "RK45 with steps for each sample, rtol = 0.002, atol = 0.001"),
        (DualWeighted(steps=30), "multistep path of 30 steps in log-SNR"),
    ],
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "method", "dual_weighted"),
)
def test_record_says_how_the_ode_was_solved(solver, said):
    record = bits_per_dim(smooth_model().score(VPSDE()), integers(2), data=SPEC, solver=solver)
    assert said in record.solver
    assert said in record.sentence()


def test_noise_that_swamps_a_bin_is_warned_of_with_its_floor():
    """sigma(t_min) = 0.05 beside bins of 2/256: log2(sqrt(2 pi) 0.05 / (2/256)) = 4.004 bits/dim."""
    spec = DataSpec((2,), levels=256)
    values = spec.quantized(smooth_model().sample(2))
    solver = ProbabilityFlow(method="euler", steps=2)
    with pytest.warns(UserWarning, match=r"no model can score below 4\.00 bits/dim"):
        bits_per_dim(smooth_model().score(VESDE(sigma_min=0.05)), values, data=spec, solver=solver)


def test_prior_mismatch_is_the_divergence_of_two_gaussians():
    sde = VPSDE(beta_max=3.0)
    factor = torch.randn(3, 3, dtype=torch.float64)
    covariance, mean = factor @ factor.mT, torch.randn(3, dtype=torch.float64)
    alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)
    eye = torch.eye(3, dtype=torch.float64)
    p = torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * covariance + sigma**2 * eye)
    q = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), sigma**2 * eye)
    expected = torch.distributions.kl_divergence(p, q) / 3 / math.log(2)
    assert prior_mismatch(sde, Moments(mean, covariance, None)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data=DataSpec"),
        ({"levels": 256}, "levels is 256"),
        ({"dequantization": "gaussian"}, "choose one of uniform"),
        ({"dequantization": "none"}, "choose one of uniform, truncated_normal"),
        ({"importance_samples": 0}, "importance_samples must be at least 1"),
        ({"cond": torch.zeros(3)}, "one condition for each of 2 samples"),
        ({"divergence": "skilling"}, "choose one of exact"),
        ({"batch_size": 0}, "batch_size"),
        ({"probes": 0}, "probes"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bits_per_dim(smooth_model().score(VPSDE()), integers(2), **{"data": SPEC, **options})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(0, 2), "empty"),
        (torch.zeros(3, 3), "shape"),
        (torch.full((1, 2), 16), "from 16 to 16"),
        (torch.full((1, 2), -1), "from -1"),
        (torch.full((1, 2), 0.5), "fractions"),
        (torch.full((1, 2), math.nan), "NaN"),
    ],
)
def test_data_that_does_not_fit_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        bits_per_dim(smooth_model().score(VPSDE()), values, data=SPEC)
