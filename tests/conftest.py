"""What the tests share: every SDE, in every way of defining one, and a mixture of any shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from score_sde import SDE, VESDE, VPSDE, GaussianMixture, SubVPSDE
from score_sde.sdes import ddpm_schedule
from score_sde.tensors import as_time


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@dataclass(frozen=True)
class CosineSDE(SDE):
    """Defined by alpha and sigma alone (Nichol and Dhariwal 2021, in continuous time, cut before alpha vanishes)."""

    def alpha(self, t):
        return torch.cos(as_time(t) * math.pi / 2 * 0.98)

    def sigma(self, t):
        return torch.sin(as_time(t) * math.pi / 2 * 0.98)


@dataclass(frozen=True)
class OrnsteinUhlenbeckSDE(SDE):
    """Defined by drift and diffusion alone: dx = -3 x dt + 2 dw, so sigma^2 = 2/3 (1 - exp(-6 t))."""

    def drift(self, x, t):
        return -3 * x

    def diffusion(self, t):
        return torch.full_like(as_time(t), 2.0)


@dataclass(frozen=True)
class NoisyStartSDE(SDE):
    """Defined by drift and diffusion, with noise at t = 0: the VE SDE from sigma 0.02 to 30 written as f = 0 and g."""

    sigma_0 = 0.02

    def drift(self, x, t):
        return torch.zeros_like(x)

    def diffusion(self, t):
        return 0.02 * 1500 ** as_time(t) * math.sqrt(2 * math.log(1500))


@dataclass(frozen=True)
class DoubleWellSDE(SDE):
    """A drift that is not linear, so no marginal is known: the gradient of x^2/2 - x^4/4."""

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.ones_like(as_time(t))


SDE_CASES = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "ddpm": ddpm_schedule(),
    "cosine": CosineSDE(t_min=1e-3),
    "ornstein_uhlenbeck": OrnsteinUhlenbeckSDE(t_min=1e-3),
    "noisy_start": NoisyStartSDE(),
}


@pytest.fixture(params=SDE_CASES, ids=str)
def sde(request) -> SDE:
    return SDE_CASES[request.param]


def mixture(shape=(2,), dtype=torch.float64, components=3, seed=0) -> GaussianMixture:
    """A mixture with full covariances of moderate condition, over events of ``shape``."""
    random = torch.Generator().manual_seed(seed)
    dim = math.prod(shape)
    means = torch.randn(components, *shape, generator=random, dtype=torch.float64)
    factor = torch.randn(components, dim, dim, generator=random, dtype=torch.float64) / dim**0.5
    covariances = 0.3 * factor @ factor.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(means.to(dtype), covariances.to(dtype), [0.2, 0.3, 0.5][:components])


@dataclass(frozen=True, eq=False)
class Recorder:
    """A score that keeps the times it was asked for, one per call."""

    inner: object
    times: list

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        assert t.shape == (len(x),)
        self.times.append(t[0].item())
        return self.inner(x, t, cond)


@dataclass(frozen=True, eq=False)
class BrokenScore:
    """A score that is NaN at times ``broken`` says."""

    inner: object
    broken: Callable

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        return self.inner(x, t, cond) * torch.where(self.broken(t[0]), math.nan, 1.0)


def autograd_score(score, x, t):
    """The gradient of ``score.log_prob``: the score, without the formula of the score."""
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
    return gradient


@dataclass(frozen=True, eq=False)
class OwnPrecision:
    """A score that is not touched by autocast."""

    inner: object

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        with torch.autocast("cpu", enabled=False):
            return self.inner(x, t, cond)
