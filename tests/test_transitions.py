"""Gaussian steps of linear SDEs, against torch's own Gaussians."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from score_sde.transitions import VARIANCES, forward_transition, step_divergence, variance_ends
from tests.conftest import SDE_CASES


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SDE_CASES)
def test_the_divergence_of_a_step_is_that_of_its_two_gaussians(name, v):
    sde = SDE_CASES[name]
    s, t = (torch.tensor(value * sde.T, dtype=torch.float64) for value in (0.4, 0.6))
    a, beta = forward_transition(sde, s, t)
    sigma_s, sigma_t, alpha_s, alpha_t = sde.sigma(s), sde.sigma(t), sde.alpha(s), sde.alpha(t)
    torch.testing.assert_close(beta, sigma_t**2 - a**2 * sigma_s**2)
    x0, epsilon, score = torch.randn(3, 4, 2, dtype=torch.float64)
    x = alpha_t * x0 + sigma_t * epsilon
    beta_tilde = beta * sigma_s**2 / sigma_t**2
    mean = lambda x0: (a * sigma_s**2 * x + alpha_s * beta * x0) / sigma_t**2
    model = Normal(mean((x + sigma_t**2 * score) / alpha_t), (v * beta.log() + (1 - v) * beta_tilde.log()).exp().sqrt())
    expected = kl_divergence(Normal(mean(x0), beta_tilde.sqrt()), model)
    torch.testing.assert_close(model.mean, (x + beta * score) / a)
    log_ratio, gain = 2 * (sigma_t / sigma_s).log(), torch.expm1(sde.log_snr(s) - sde.log_snr(t))
    found = step_divergence(epsilon + sigma_t * score, gain, v * log_ratio)
    for end, variance in zip(variance_ends(sde, s, t), (beta_tilde, beta), strict=True):
        torch.testing.assert_close(end, variance.log())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_variances_are_named_as_in_the_literature():
    assert VARIANCES == {"beta_tilde": 0.0, "beta": 1.0, "learned": None}
