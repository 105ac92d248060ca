r"""The straight path from data to noise of flow matching (Lipman et al. 2023; Liu et al. 2023, rectified flow).

    x_t = (1 - t) x0 + t epsilon,      alpha = 1 - t,   sigma = t

    f = -1 / (1 - t),   g^2 = 2 t / (1 - t),   log_snr = 2 log((1 - t) / t),   t = sigmoid(-log_snr / 2)

Time runs from data to noise, as everywhere in this package; Lipman et al. let it run from noise to data. At t = 1 nothing is
left of the data, and f and g are infinite. The SDE therefore ends at T < 1, and its prior is N(0, T^2 I). What this costs, for
data of unit variance, in bits per dimension:

    T                                            0.99      0.999     0.9999
    KL(q(x_T | x0) || prior), in a bound         7e-5      7e-7      7e-9
    KL(p_T || prior), in the density itself      4e-9      4e-13     4e-17

A T near 1 has its price. The implied x0 = (x + sigma^2 score) / alpha is rounded to 1 / (1 - T) times the precision of x, and a
first step of length h of the reverse-time SDE by Euler's rule multiplies the state by about 1 - h / (1 - T).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from score_sde.sdes.base import SDE
from score_sde.tensors import as_time


@dataclass(frozen=True)
class StraightSDE(SDE):
    """The SDE with alpha = 1 - t and sigma = t, up to T < 1; at the default t_min its noise is about that of ``vp``."""

    T: float = field(default=0.999, kw_only=True)
    t_min: float = field(default=1e-3, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.T >= 1:
            raise ValueError(f"T must be below 1, where nothing is left of the data, got {self.T:g}")

    def alpha(self, t: Tensor | float) -> Tensor:
        return 1 - as_time(t)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log1p(-as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return as_time(t)

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        return -1 / (1 - as_time(t))

    def diffusion(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return (2 * t / (1 - t)).sqrt()

    def inverse_log_snr(self, log_snr: Tensor | float) -> Tensor:
        return (-as_time(log_snr) / 2).sigmoid()
