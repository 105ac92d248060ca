"""The first two moments of data."""

import math

import numpy as np
import pytest
import torch

from score_sde.data import (
    DataSpec,
    TensorSource,
    digits,
    moments,
)
from tests.data.reading import continuous, every


@pytest.mark.parametrize("dequantize", [True, False])
def test_moments_of_integers_agree_with_numpy(dequantize):
    source = digits(dequantize=dequantize).train
    values = every(source)
    found = moments(source)
    width = 2 / 17 if dequantize else 2 / 16
    x = (values.flatten(1).numpy() + (0.5 if dequantize else 0.0)) * width - 1
    expected = np.cov(x.T, bias=True) + (width**2 / 12 * np.eye(64) if dequantize else 0)
    np.testing.assert_allclose(found.mean.flatten().numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), expected, atol=1e-12)
    assert found.mean.shape == (1, 8, 8)
    assert found.spectrum is None


def test_moments_are_those_of_the_data_with_its_noise():
    """Every integer with every u of a fine grid, encoded as in training."""
    spec, values = DataSpec((3,), levels=17), torch.randint(0, 17, (40, 3))
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    x = torch.cat([spec.encode(values, torch.stack([u[i], u.roll(37)[i], u.flip(0)[i]]).expand(40, 3)) for i in range(100)])
    found = moments(TensorSource(values, spec))
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.covariance.diagonal(), x.var(0, correction=0), rtol=1e-5, atol=1e-6)


def test_moments_of_continuous_data_agree_with_numpy():
    values = torch.randn(300, 2, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 5
    spec = DataSpec((2, 3), data_range=(1.0, 9.0))
    found = moments(TensorSource(values, spec))
    x = ((values - 5) / 4).flatten(1).numpy()
    np.testing.assert_allclose(found.mean.flatten().numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (2, 9), (1, 8, 8), (2, 4, 3, 5)])
def test_spectrum_holds_all_the_variance(shape):
    """Parseval: an orthonormal transform keeps the sum of the variances, channel by channel."""
    spec = DataSpec(shape, levels=17)
    values = torch.randint(0, 17, (60, *shape)).cumsum(-1) % 17
    full, field = moments(TensorSource(values, spec)), moments(TensorSource(values, spec), full_up_to=0)
    assert field.covariance is None
    assert field.spectrum.shape == shape
    torch.testing.assert_close(field.mean, full.mean)
    variances = full.covariance.diagonal().reshape(shape[0], -1).sum(1)
    torch.testing.assert_close(field.spectrum.reshape(shape[0], -1).sum(1), variances)


@pytest.mark.parametrize("shape", [(1, 5), (2, 6), (1, 4, 5), (2, 5, 4), (1, 3, 4, 6), (1, 4, 1)])
def test_spectrum_is_the_variance_of_every_fourier_coefficient(shape):
    """By the transform of complex fields, for sides of even and odd length; of correlated samples without any symmetry."""
    values = torch.randn(50, *shape, dtype=torch.float64).cumsum(-1).cumsum(1) * torch.randn(shape, dtype=torch.float64)
    coefficients = torch.fft.fftn(values, dim=tuple(range(2, values.ndim)), norm="ortho")
    found = moments(continuous(values), full_up_to=0).spectrum
    torch.testing.assert_close(found, coefficients.var(0, correction=0))


def test_spectrum_of_white_noise_is_flat():
    count = 4000
    values = torch.randn(count, 2, 8, 8, dtype=torch.float64)
    spectrum = moments(continuous(values), full_up_to=0).spectrum
    assert (spectrum - 1).abs().max() < 5 * (2 / count) ** 0.5  # 128 estimates of a variance, real or half of a complex one


def test_spectrum_of_a_wave_is_at_its_wave_number():
    """cos(2 pi 3 n / 16 + phase): half of the power, 16 / 2, at each of 3 and -3."""
    phase = torch.arange(64, dtype=torch.float64)[:, None, None] * 2 * math.pi / 64
    values = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16 + phase)
    spectrum = moments(continuous(values), full_up_to=0).spectrum[0]
    expected = torch.zeros(16, dtype=torch.float64)
    expected[3] = expected[-3] = 4.0
    torch.testing.assert_close(spectrum, expected)
