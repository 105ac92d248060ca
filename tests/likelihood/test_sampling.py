"""Samples that know their densities."""

import pytest
import torch

from score_sde import ProbabilityFlow, log_likelihood, sample_with_log_prob
from tests.conftest import SDE_CASES, mixture


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 2, 2)])
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
