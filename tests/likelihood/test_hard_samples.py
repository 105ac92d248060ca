"""Samples that a multistep path cannot follow: between separated modes, or far from all data. No wrong number in silence."""

import math

import pytest
import torch

from score_sde import VESDE, VPSDE, DataSpec, GaussianMixture, ProbabilityFlow, SubVPSDE, bits_per_dim, log_likelihood
from score_sde.likelihood import DualWeighted
from score_sde.solvers import SolverError
from score_sde.solvers.runge_kutta import dormand_prince
from tests.benchmarks.likelihood_honesty import SUITE, case
from tests.oracles import BrokenScore, mixture

MODES = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), [1e-4, 1e-4])
BETWEEN = torch.tensor([[-1 + 0.01 * sigmas, 0.0] for sigmas in (5, 10, 20)], dtype=torch.float64)
FAR = torch.tensor([[20.0, 0.0], [-20.0, 0.0], [0.0, 20.0]], dtype=torch.float64)


def truth(score, x, latent):
    """log p in nats that the flow with the SDE's own prior gives, in closed form."""
    sde = score.sde
    return score.log_prob(x, sde.t_min) + sde.prior_log_prob(latent) - score.log_prob(latent, sde.T)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(sigma_min=0.002, sigma_max=80.0)], ids=["vp", "subvp", "ve"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.covering(1)
@pytest.mark.quick("vp")
def test_points_between_modes(sde, dtype):
    """5, 10 and 20 sigma from a mode; the error is below 0.01 nats/dim, and at most twice what the sample itself says."""
    single = MODES.to(dtype)
    result = log_likelihood(single.score(sde), BETWEEN.to(dtype), solver=DualWeighted())
    exact = truth(single.to(torch.float64).score(sde), BETWEEN.to(dtype).double(), result.latent.double())
    error = (result.log_prob.double() - exact).abs() / 2
    assert (-exact).tolist() == sorted(-exact)
    assert -exact[2] > 180
    assert error.max() < 0.01
    assert (2 * error <= 2 * result.error + 1e-6 * exact.abs()).all()
    assert result.steps[2] == 0


@pytest.mark.slow
def test_points_further_between_modes():
    """40 and 70 sigma: 567 and 1,745 bits/dim."""
    score, x = MODES.score(VPSDE()), torch.tensor([[-0.6, 0.0], [-0.3, 0.0]], dtype=torch.float64)
    result = log_likelihood(score, x, solver=DualWeighted())
    bits = -result.log_prob / (2 * math.log(2))
    assert bits.tolist() == pytest.approx([566.55, 1744.97], abs=0.02)
    assert ((result.log_prob - truth(score, x, result.latent)).abs() <= 2 * result.error).all()


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32], ids=["float64", "float32"]
)
def test_points_far_outside(dtype):
    """A million nats: in float32 what its rounding leaves, with an error that says so."""
    score = MODES.score(VPSDE())
    result = log_likelihood(MODES.to(dtype).score(VPSDE()), FAR.to(dtype), solver=DualWeighted())
    exact = truth(score, FAR, result.latent.double())
    assert exact.max() < -1e5
    torch.testing.assert_close(result.log_prob.double(), exact, rtol=1e-6 if dtype == torch.float64 else 1e-4, atol=0.02)
    assert ((result.log_prob.double() - exact).abs() <= 2 * result.error + 1e-6 * exact.abs()).all()


@pytest.mark.parametrize("name", ["vp", "ddpm, cosine"])
def test_points_outside_a_mixture_of_unequal_widths(name):
    """Large residuals that cancel: after 32 steps log p was off by up to 2 nats at an estimated error of 0.03."""
    place = torch.Generator().manual_seed(0)
    wide = GaussianMixture(torch.randn(4, 3, generator=place, dtype=torch.float64), [1e-2, 1e-3, 0.1, 1.0])
    score, x = wide.score(SUITE[name]), 8 * wide.sample(16, seed=3)
    result = log_likelihood(score, x, solver=DualWeighted())
    error = (result.log_prob - truth(score, x, result.latent)).abs()
    assert (result.steps > 32).sum() >= 3
    assert error.max() < 0.06
    assert (error <= 3 * result.error + 1e-5).double().mean() >= 0.9


def test_one_hard_sample_among_63_others():
    """True mean 56.7 bits/dim; its neighbours are solved as without it."""
    score, easy, x = one_hard_sample(torch.float32)
    record = bits_per_dim(score, x, data=DataSpec((2,)), divergence="exact")
    assert record.mean == pytest.approx(56.71, abs=0.005)
    assert record.runge_kutta == 1
    assert "Runge-Kutta steps for 1 hard sample," in record.sentence()
    apart = log_likelihood(score, easy, solver=DualWeighted())
    together = log_likelihood(score, x, solver=DualWeighted())
    torch.testing.assert_close(together.log_prob[:63], apart.log_prob)
    assert (together.steps[:63] == apart.steps).all()


@pytest.mark.slow
def test_one_hard_sample_with_a_target():
    score, _, x = one_hard_sample(torch.float32)
    record = bits_per_dim(score, x, data=DataSpec((2,)), divergence="exact", target_error=0.003)
    assert record.mean == pytest.approx(56.71, abs=0.005)


@pytest.mark.slow
def test_one_hard_sample_in_float64():
    """Its ODE is stiff: ten thousand evaluations at every tolerance."""
    score, _, x = one_hard_sample(torch.float64)
    result = log_likelihood(score, x[63:], solver=DualWeighted())
    exact = truth(score, x[63:], result.latent)
    assert -exact.item() / (2 * math.log(2)) == pytest.approx(3887.067, abs=0.001)
    assert (result.log_prob - exact).abs() <= 2 * result.error
    assert result.error < 0.02


def one_hard_sample(dtype):
    easy = MODES.sample(63, seed=3)
    x = torch.cat([easy, torch.tensor([[1e-5, 0.3]], dtype=torch.float64)])
    exact = (-MODES.score(VPSDE()).log_prob(x, 1e-5) / (2 * math.log(2))).mean().item()
    assert exact == pytest.approx(56.71, abs=0.001)
    return MODES.to(dtype).score(VPSDE()), easy.to(dtype), x.to(dtype)


HARD = {"subspace + 1e-3": "ddpm, cosine", "saddle": "vp", "peaked + broad": "subvp", "constant coordinate": "ve"}


@pytest.mark.parametrize(("kind", "name"), HARD.items())
def test_what_a_sample_says_of_its_error(kind, name):
    """Its error is at most twice its estimate for 9 samples of 10, and the estimates are not far too large."""
    chosen, x = case(kind, 20)
    score = chosen.score(SUITE[name])
    result = log_likelihood(score, x, solver=DualWeighted())
    error = (result.log_prob - truth(score, x, result.latent)).abs()
    assert result.error.shape == (len(x),)
    assert (error <= 2 * result.error + 1e-5).double().mean() >= 0.9
    rms = lambda value: value.square().mean().sqrt()
    assert rms(result.error) < 12 * rms(error)
    assert log_likelihood(score, x[:2], solver=ProbabilityFlow(method="rk4", steps=4)).error is None


@pytest.mark.slow
def test_an_audit_starts_from_the_steps_of_each_sample():
    """VE in four dimensions, eight sigma out: many samples needed 64 steps, where a finer solver began."""
    truly = mixture((4,), seed=2)
    score = truly.score(VESDE(sigma_min=0.002, sigma_max=80.0))
    x = truly.sample(48, seed=5)
    x = x + 8 * truly.variances.max().sqrt() * torch.nn.functional.normalize(x, dim=1)
    record = bits_per_dim(score, x, data=DataSpec((4,)), divergence="exact", solver=DualWeighted(tolerance=0.003))
    result = log_likelihood(score, x, solver=DualWeighted(tolerance=0.003))
    assert (result.steps > 32).double().mean() > 0.2
    error = (result.log_prob - truth(score, x, result.latent)) / (4 * math.log(2))
    true = error.square().mean().sqrt().item()
    assert true / 1.5 <= record.solver_error <= 5 * true
    assert -record.solver_bias == pytest.approx(error.mean().item(), abs=2 * record.solver_bias_stderr + 0.25 * true)


@pytest.mark.slow
def test_a_target_is_held_against_the_whole_set():
    """A pilot of easy samples, and hard ones where it does not look: the error of all is within the target in the end."""
    single, x = MODES.to(torch.float32), MODES.sample(64, seed=1)
    x[::8] = torch.stack([torch.linspace(-0.98, -0.8, 8), torch.zeros(8)], dim=1).double()  # the pilot takes 2, 10, ...
    x = x.float()
    record = bits_per_dim(single.score(VPSDE()), x, data=DataSpec((2,)), divergence="exact", target_error=0.003)
    assert record.solver_error <= 0.003
    score = single.to(torch.float64).score(VPSDE())
    latent = log_likelihood(score, x.double(), solver=DualWeighted()).latent
    error = torch.tensor(record.per_sample, dtype=torch.float64) + truth(score, x.double(), latent) / (2 * math.log(2))
    assert error.square().mean().sqrt() <= 0.003


class Cliff:
    """Standard normal data for samples near 0; no score at all beyond 5."""

    sde = VPSDE()

    def __call__(self, x, t, cond=None):
        beyond = (x.abs() > 5).any(1, keepdim=True)
        return torch.where(beyond, math.nan, -x)


def test_a_sample_that_nobody_solves_has_no_value():
    x = torch.randn(6, 2, dtype=torch.float64).clamp(-3, 3)
    x[4] = 8.0
    with pytest.warns(UserWarning, match=r"1 of 6 samples have no log p but NaN \(14\)"):
        result = log_likelihood(Cliff(), x, solver=DualWeighted(), first=10)
    assert result.log_prob.isnan().tolist() == [False] * 4 + [True, False]
    assert result.error.isnan().tolist() == result.log_prob.isnan().tolist()
    torch.testing.assert_close(result.log_prob[:4], VPSDE().prior_log_prob(x[:4]), rtol=0, atol=1e-4)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(SolverError, match=r"1 of 6 samples have no likelihood.* at 4,"):
        bits_per_dim(Cliff(), x, data=DataSpec((2,)), divergence="exact")
    with pytest.raises(SolverError, match="not finite"):
        log_likelihood(Cliff(), x[4:5], solver=DualWeighted())


def test_a_broken_score_is_a_named_error_for_a_batch():
    score = BrokenScore(mixture((2,), torch.float32).score(VPSDE()), lambda t: t > 0.2)
    with pytest.raises(SolverError, match=r"samples 0 to 4, counted from 0: .*not finite at t"):
        bits_per_dim(score, torch.zeros(5, 2), data=DataSpec((2,)))


def test_runge_kutta_steps_leave_out_only_what_cannot_be_solved():
    """dy/dt = y^2 from y = 0.5, 2 and -1 to t = 1: the second one is infinite at 1/2."""
    start = torch.tensor([[0.5], [2.0], [-1.0]], dtype=torch.float64)
    how = {"rtol": 1e-8, "atol": 1e-8, "max_steps": 500}
    end = dormand_prince(lambda t, y: y**2, start, 0.0, 1.0, partial=True, **how)
    torch.testing.assert_close(end, torch.tensor([[1.0], [math.nan], [-0.5]]).double(), equal_nan=True, rtol=1e-6, atol=0)
    with pytest.raises(SolverError):
        dormand_prince(lambda t, y: y**2, start, 0.0, 1.0, **how)
    with pytest.raises(SolverError):
        dormand_prince(lambda t, y: y**2, start[1:2], 0.0, 1.0, partial=True, **how)
