r"""The cosine schedule in continuous time (Nichol and Dhariwal 2021, Eq. 17), a variance-preserving SDE.

    alpha(t) = cos(theta) / cos(theta_0),   theta = theta_0 + w t,
    theta_0 = (pi / 2) shift / (1 + shift),   w = (pi / 2) / (1 + shift)

As theta_0 + w = pi / 2, alpha vanishes at t = 1, so the SDE ends before: T < 1. With cos(theta) = sin(w (1 - t)) and
cos^2 a - cos^2 b = sin(b - a) sin(b + a),

    sigma^2 = sin(w t) sin(w t + 2 theta_0) / cos^2 theta_0
    beta = -2 (log alpha)' = 2 w tan(theta) = 2 w / tan(w (1 - t)),

in which nothing cancels, neither near t = 0 nor near 1. For the inverse,

    sin^2 theta = sin^2 theta_0 + sigma^2 cos^2 theta_0
    sin(w t) = sin(theta - theta_0) = cos(theta_0) [(sin theta - sin theta_0) + sin(theta_0) (1 - alpha)]
    sin theta - sin theta_0 = sigma^2 cos^2 theta_0 / (sin theta + sin theta_0).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.sdes.vp import VariancePreserving


@dataclass(frozen=True)
class CosineSDE(VariancePreserving):
    """The variance-preserving SDE whose alpha is a cosine. Nothing is left of the data at t = 1: it ends at T < 1.

    Args:
        shift: moves the start along the cosine, so that the noise does not grow too slowly there; 0 or more.
    """

    T: float = field(default=0.999, kw_only=True)
    shift: float = 0.008

    def __post_init__(self):
        super().__post_init__()
        require_finite({"shift": self.shift})
        if self.shift < 0:
            raise ValueError(f"shift must be 0 or more, got {self.shift}")
        if self.T >= 1:
            raise ValueError(f"T must be below 1, where the cosine is 0 and nothing is left of the data, got {self.T:g}")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.shift)

    @property
    def _start(self) -> float:
        return self._rate * self.shift

    def beta(self, t: Tensor) -> Tensor:
        early = (self._start + self._rate * t.clamp(max=0.5)).tan()
        late = 1 / (self._rate * (1 - t.clamp(min=0.5))).tan()
        return 2 * self._rate * torch.where(t < 0.5, early, late)

    def integral(self, t: Tensor) -> Tensor:
        angle, cos = self._rate * t.clamp(max=0.5), math.cos(self._start)
        early = -torch.log1p(-angle.sin() * (angle + 2 * self._start).sin() / cos**2)
        late = -2 * ((self._rate * (1 - t.clamp(min=0.5))).sin() / cos).log()
        return torch.where(t < 0.5, early, late)

    def inverse_integral(self, integral: Tensor) -> Tensor:
        sin_0, cos_0 = math.sin(self._start), math.cos(self._start)
        lost, variance = -torch.expm1(-integral / 2), -torch.expm1(-integral)  # 1 - alpha, sigma^2
        sin = (sin_0**2 + variance * cos_0**2).sqrt()
        rise = cos_0 * (variance * cos_0**2 / (sin + sin_0) + sin_0 * lost)
        return torch.atan2(rise, (1 - lost) * cos_0**2 + sin * sin_0) / self._rate
