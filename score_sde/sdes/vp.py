r"""Variance-preserving SDEs, the continuous limit of DDPM (Song et al. 2021, Eq. 11).

    dx = -beta(t)/2 x dt + sqrt(beta(t)) dw
    alpha(t) = exp(-B(t)/2),   sigma(t)^2 = 1 - exp(-B(t)),   B(t) = \int_0^t beta(u) du

Everything that cancels is written with expm1 and softplus: alpha^2 = sigmoid(log_snr), hence
B = softplus(-log_snr).
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from score_sde.inputs import require_finite
from score_sde.sdes.base import SDE
from score_sde.tensors import as_time


@dataclass(frozen=True)
class BetaSDE(SDE):
    """An SDE whose drift is -beta(t)/2 x: subclasses give beta, its integral and the integral's inverse."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Noise rate, per unit of time."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), the integral of beta from 0 to t."""

    @abstractmethod
    def inverse_integral(self, integral: Tensor) -> Tensor:
        """The time at which the integral of beta reaches ``integral``."""

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return -self.integral(as_time(t)) / 2

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.log_alpha(t).exp()

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        return -self.beta(as_time(t)) / 2


@dataclass(frozen=True)
class LinearBetaSDE(BetaSDE):
    """beta(t) rises linearly from ``beta_min`` at 0 to ``beta_max`` at T (Song et al. 2021, Appendix C).

    Args:
        beta_min, beta_max: rates per unit of time, 0 <= beta_min <= beta_max, beta_max > 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        require_finite({"beta_min": self.beta_min, "beta_max": self.beta_max})
        if not (0 <= self.beta_min <= self.beta_max and self.beta_max > 0):
            raise ValueError(f"need 0 <= beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    @property
    def _slope(self) -> float:
        return (self.beta_max - self.beta_min) / self.T

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + self._slope * t

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + self._slope * t / 2)

    def inverse_integral(self, integral: Tensor) -> Tensor:
        # the root of slope t^2/2 + beta_min t - B = 0, in the form that does not cancel
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self._slope * integral).sqrt())


@dataclass(frozen=True)
class VariancePreserving(BetaSDE):
    """A ``BetaSDE`` with sigma^2 = 1 - alpha^2."""

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-torch.expm1(-self.integral(as_time(t)))).sqrt()

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self.beta(as_time(t)).sqrt()

    def log_snr(self, t: Tensor | float) -> Tensor:
        integral = self.integral(as_time(t))
        return -integral - (-torch.expm1(-integral)).log()

    def inverse_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return self.inverse_integral(softplus(-as_time(log_snr), threshold=40))


@dataclass(frozen=True)
class VPSDE(VariancePreserving, LinearBetaSDE):
    """The variance-preserving SDE with a linear beta: DDPM in continuous time."""
