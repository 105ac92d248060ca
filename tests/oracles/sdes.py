"""Every SDE, in every way of defining one."""

import math
from dataclasses import dataclass

import torch

from score_sde import SDE, VESDE, VPSDE, SubVPSDE
from score_sde.sdes import CosineSDE, LogSNRSDE, StraightSDE, ddpm_schedule
from score_sde.tensors import as_time


@dataclass(frozen=True)
class QuarterCircleSDE(SDE):
    """Defined by alpha and sigma alone, which go along a quarter of a circle, cut before alpha vanishes."""

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
    "cosine": CosineSDE(),
    "straight": StraightSDE(),
    "snr": LogSNRSDE(times=(0.0, 0.25, 0.7, 1.0), log_snrs=(13.0, 6.0, -3.0, -10.0)),
    "quarter_circle": QuarterCircleSDE(t_min=1e-3),
    "ornstein_uhlenbeck": OrnsteinUhlenbeckSDE(t_min=1e-3),
    "noisy_start": NoisyStartSDE(),
}

PUBLISHED = ("vp", "subvp", "ve")
"""Those of Song et al. (2021)."""
