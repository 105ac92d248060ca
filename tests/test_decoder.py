"""The discretized Gaussian: a distribution over the levels, its tails, its gradient."""

import math

import pytest
import torch

from score_sde import DataSpec
from score_sde.decoder import discretized_gaussian


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("levels", [2, 8, 256])
def test_decoder_is_a_distribution(levels, dequantize, dtype):
    spec = DataSpec((1,), levels=levels, dequantize=dequantize)
    mean = torch.tensor([0.0, 0.3, -0.999, 1.0, 3.0, -40.0, 1e6, -1e30], dtype=dtype)
    for std in (1e-3, 0.1, 20.0):
        log_prob = discretized_gaussian(torch.arange(levels)[:, None], mean, std, spec)
        assert log_prob.isfinite().all()
        torch.testing.assert_close(log_prob.logsumexp(0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-9)


def test_decoder_far_in_its_tail():
    """The bin's integral taken relative to the density at its near end, which keeps it from vanishing."""
    spec = DataSpec((1,), levels=8)
    for mean, std in ((3.0, 0.01), (-2.0, 0.05), (0.3, 0.01), (100.0, 0.5)):
        for level in range(1, 7):
            low, high = -1 + level / 4, -1 + (level + 1) / 4
            near = min(max(mean, low), high)
            z = (torch.linspace(low, high, 400_001, dtype=torch.float64) - mean) / std
            inside = torch.trapezoid((-(z**2) / 2 + (near - mean) ** 2 / std**2 / 2).exp(), z)
            expected = inside.log() - (near - mean) ** 2 / std**2 / 2 - math.log(2 * math.pi) / 2
            found = discretized_gaussian(torch.tensor([[level]]), torch.tensor([[mean]], dtype=torch.float64), std, spec)
            torch.testing.assert_close(found.squeeze(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [2, 8, 32])
def test_the_gradient_of_the_decoder_is_that_of_its_values(levels):
    spec = DataSpec((1,), levels=levels)
    mean = torch.tensor([0.0, 0.3, -0.999, 1.0], dtype=torch.float64, requires_grad=True)
    for log_std in (-4.0, -1.0, 3.0):
        log_std = torch.full((4,), log_std, dtype=torch.float64, requires_grad=True)
        log_prob = lambda mean, log_std: discretized_gaussian(torch.arange(levels)[:, None], mean, log_std.exp(), spec)
        assert torch.autograd.gradcheck(log_prob, (mean, log_std), atol=1e-4)


def test_the_gradient_of_the_decoder_far_in_its_tail():
    """There the bin's mass lies at its near end, z standard deviations away: the gradient is that of -z^2 / 2 - log z."""
    spec = DataSpec((1,), levels=8)
    for away in (1e2, 1e4, 1e8):
        mean = torch.tensor([[0.25 - 0.01 * away]], dtype=torch.float64, requires_grad=True)
        log_prob = discretized_gaussian(torch.tensor([[5]]), mean, 0.01, spec)
        (gradient,) = torch.autograd.grad(log_prob, mean)
        assert gradient.item() == pytest.approx((away + 1 / away) / 0.01, rel=1e-6)
        assert math.isfinite(log_prob.item())
