r"""The variance-exploding SDE, the continuous limit of NCSN (Song et al. 2021, Eq. 9 and Appendix C).

    dx = sigma(t) sqrt(2 log(sigma_max / sigma_min) / T) dw
    alpha = 1,   sigma(t) = sigma_min (sigma_max / sigma_min)^(t/T)

The noise starts at sigma_min, not at 0, so that g^2 = (sigma^2)' holds from t = 0 on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.sdes.base import SDE
from score_sde.tensors import as_time


@dataclass(frozen=True)
class VESDE(SDE):
    """The variance-exploding SDE with a geometric sigma.

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = T in units of the data, 0 < sigma_min < sigma_max. A good sigma_max is
            the largest distance between two data points (Song and Ermon 2020, Technique 1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        require_finite({"sigma_min": self.sigma_min, "sigma_max": self.sigma_max})
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min) / self.T

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(as_time(t))

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_min * (self._rate * as_time(t)).exp()

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def log_snr(self, t: Tensor | float) -> Tensor:
        return -2 * (math.log(self.sigma_min) + self._rate * as_time(t))

    def inverse_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return (-as_time(log_snr) / 2 - math.log(self.sigma_min)) / self._rate
