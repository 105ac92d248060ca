"""Samples that know their densities."""

import pytest
import torch

from score_sde import Hutchinson, ProbabilityFlow, UniPC, log_likelihood, sample_with_log_prob
from tests.oracles import SDE_CASES, mixture


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 2, 2)])
@pytest.mark.covering(1)
def test_density_of_a_sample_is_that_of_the_mixture(shape, sde):
    score = mixture(shape).score(sde)
    fine = ProbabilityFlow(method="rk45", rtol=1e-7, atol=1e-7)
    drawn = sample_with_log_prob(score, (4, *shape), solver=fine, seed=2, prior=lambda z: score.log_prob(z, sde.T))
    assert drawn.x.shape == (4, *shape)
    torch.testing.assert_close(drawn.log_prob, score.log_prob(drawn.x, sde.t_min), rtol=0, atol=1e-4)
    assert drawn.nfe == pytest.approx(drawn.vjps / drawn.x[0].numel())


def test_the_sample_is_the_solvers_own_and_its_density_that_of_the_way_back():
    score = mixture().score(SDE_CASES["vp"])
    solver = ProbabilityFlow(method="rk45", rtol=1e-6, atol=1e-6)
    drawn = sample_with_log_prob(score, (5, 2), solver=solver, seed=3)
    torch.testing.assert_close(drawn.x, solver.sample(score, (5, 2), seed=3).x, rtol=0, atol=1e-4)
    back = log_likelihood(score, drawn.x, solver=solver)
    torch.testing.assert_close(drawn.log_prob, back.log_prob, rtol=0, atol=1e-3)
    torch.testing.assert_close(drawn.x_T, back.latent, rtol=1e-3, atol=1e-3)


def test_given_latents_and_an_estimated_divergence():
    score = mixture().score(SDE_CASES["subvp"])
    x_T = torch.randn(64, 2, dtype=torch.float64)
    exact = sample_with_log_prob(score, (64, 2), x_T=x_T)
    estimated = sample_with_log_prob(score, (64, 2), x_T=x_T, divergence="hutchinson")
    difference = estimated.log_prob - exact.log_prob
    assert difference.abs().max() > 1e-3
    assert abs(difference.mean()) < 4 * difference.std() / 8
    assert exact.probe_variance.max() == 0
    several = sample_with_log_prob(score, (64, 2), x_T=x_T, divergence=Hutchinson(probes=8))
    spread = (several.log_prob - exact.log_prob).square().mean()
    assert float(several.probe_variance.mean()) == pytest.approx(float(spread), rel=0.6)


def test_the_integral_is_kept_in_single_precision():
    """A half-precision state: log p differs by what the state's rounding does, not by that of a long sum."""
    score = mixture(dtype=torch.float32).score(SDE_CASES["vp"])
    x = torch.zeros(1, 2)
    solver = ProbabilityFlow(method="rk4", steps=100)
    half, single = (log_likelihood(score, point, solver=solver) for point in (x.bfloat16(), x))
    assert half.latent.dtype == torch.bfloat16
    torch.testing.assert_close(half.log_prob, single.log_prob, rtol=0, atol=0.01)


def test_what_does_not_fit_is_refused():
    score = mixture().score(SDE_CASES["vp"])
    with pytest.raises(TypeError, match="needs a ProbabilityFlow, got UniPC"):
        sample_with_log_prob(score, (2, 2), solver=UniPC())
    with pytest.raises(ValueError, match="x_T has shape"):
        sample_with_log_prob(score, (2, 2), x_T=torch.zeros(3, 2))
