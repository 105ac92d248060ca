r"""A variance-preserving SDE through a table of discrete betas, as DDPM and its descendants publish them.

A discrete chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z_k (Ho et al. 2020, Eq. 2) has the marginal of a VP SDE
with B(t_k) = -sum_{i <= k} log(1 - beta_i) at t_k = k T / N. Between those nodes B is interpolated by a monotone cubic
(Fritsch and Carlson 1980), so that beta = B' is continuous and non-negative and the SDE agrees with the table exactly at
every node.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from score_sde.sdes.cubic import Cubic, monotone_cubic
from score_sde.sdes.vp import VariancePreserving
from score_sde.tables import require_name


@dataclass(frozen=True)
class TabulatedSDE(VariancePreserving):
    """The VP SDE through the discrete table ``betas``.

    Args:
        betas: beta_1 ... beta_N of the discrete chain, each in (0, 1), N at least 2.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        super().__post_init__()
        if len(self.betas) < 2 or not all(0 < b < 1 for b in self.betas):
            raise ValueError("betas must be at least two numbers, each above 0 and below 1")

    def integral(self, t: Tensor) -> Tensor:
        return _curve(self.betas, self.T, t.dtype, t.device).value(t)

    def beta(self, t: Tensor) -> Tensor:
        return _curve(self.betas, self.T, t.dtype, t.device).slope(t)

    def inverse_integral(self, integral: Tensor) -> Tensor:
        low, high = torch.zeros_like(integral), torch.full_like(integral, self.T)
        for _ in range(64):
            middle = (low + high) / 2
            early = self.integral(middle) < integral
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2


@lru_cache(maxsize=16)
def _curve(betas: tuple[float, ...], T: float, dtype: torch.dtype, device: torch.device) -> Cubic:
    nodes = np.arange(len(betas) + 1) * (T / len(betas))
    integral = np.concatenate([[0.0], np.cumsum(-np.log1p(-np.asarray(betas)))])
    return monotone_cubic(nodes, integral, dtype, device)


def ddpm_schedule(
    steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    schedule: str = "linear",
    betas: tuple[float, ...] = (),
    t_min: float = 1e-5,
) -> TabulatedSDE:
    """A table of betas: DDPM's own by default (Ho et al. 2020, Section 4).

    Args:
        steps: number of steps.
        beta_start, beta_end: first and last beta of a ``linear`` table.
        schedule: ``linear``, or ``cosine`` for alpha_bar = cos^2 of an angle that rises to pi / 2, with beta at most 0.999
            (Nichol and Dhariwal 2021, Eq. 17).
        betas: a table of one's own, in place of all this.

    Raises:
        ValueError: the schedule is unknown, or a beta is not between 0 and 1.
    """
    require_name("schedule", schedule, ("linear", "cosine"))
    if not betas and schedule == "linear":
        betas = np.linspace(beta_start, beta_end, steps).tolist()
    elif not betas:
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).tolist()
    return TabulatedSDE(betas=tuple(betas), t_min=t_min)
