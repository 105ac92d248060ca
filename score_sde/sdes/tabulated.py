r"""A variance-preserving SDE through a table of discrete betas, as DDPM and its descendants publish them.

A discrete chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) z_k (Ho et al. 2020, Eq. 2) has the marginal of a VP SDE
with B(t_k) = -sum_{i <= k} log(1 - beta_i) at t_k = k T / N. Between those nodes B is interpolated by a monotone cubic
(Fritsch and Carlson 1980), so that beta = B' is continuous and non-negative and the SDE agrees with the table exactly at
every node.

A respaced chain keeps some of the nodes. Its betas are 1 - exp(B(t_{k-1}) - B(t_k)) between neighbours (Nichol and Dhariwal
2021, Eq. 19), and its SDE is that of the original chain: a network that was trained on all steps meets at every time the noise
that it knows, and ``labels * t / T - 1`` is still the original step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from score_sde.inputs import whole
from score_sde.sdes.cubic import Cubic, monotone_cubic
from score_sde.sdes.respacing import kept_steps
from score_sde.sdes.vp import VariancePreserving
from score_sde.tables import require_name


@dataclass(frozen=True)
class TabulatedSDE(VariancePreserving):
    """The VP SDE through the discrete table ``betas``.

    Args:
        betas: beta_1 ... beta_N of the discrete chain, each in (0, 1), N at least 2.
        times: t_1 < ... < t_N, at which its steps end; by default k T / N.
        original: betas of the chain k T / N of which this one keeps the steps that end at ``times``, as ``respaced`` makes it.
    """

    betas: tuple[float, ...]
    times: tuple[float, ...] = ()
    original: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("betas", "times", "original"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        super().__post_init__()
        if len(self.betas) < 2 or not all(0 < b < 1 for b in (*self.betas, *self.original)):
            raise ValueError("betas must be at least two numbers, each above 0 and below 1")
        if self.times and len(self.times) != len(self.betas):
            raise ValueError(f"need a time for each of {len(self.betas)} betas, got {len(self.times)}")
        if any(s >= t for s, t in pairwise((0.0, *self.times))) or (self.times and self.times[-1] > self.T):
            raise ValueError(f"times must rise from above 0 to at most T = {self.T:g}")
        if self.original:
            exact = torch.diff(self.integral(self.nodes()), prepend=torch.zeros(1, dtype=torch.float64))
            if not torch.allclose(-torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)), exact, rtol=1e-6, atol=1e-12):
                raise ValueError("betas are not those between times of the original chain: make a part of it by respaced")
        elif self.times and self.times[-1] != self.T:
            raise ValueError(f"the last of the times must be T = {self.T:g}, got {self.times[-1]:g}")

    @classmethod
    def from_log_snr(
        cls, log_snr: Callable[[Tensor], Tensor], steps: int = 1000, *, T: float = 1.0, t_min: float = 1e-5
    ) -> Self:
        """The chain whose log-SNR at k T / N, k = 1 ... N = ``steps``, is ``log_snr``, a falling function of the time.

        It preserves the variance, so that alpha^2 = sigmoid(log-SNR). ``CosineSDE().log_snr`` is such a function.

        Raises:
            ValueError: the log-SNR does not fall, or is not finite.
        """
        t = torch.arange(1, whole("steps", steps, 2) + 1, dtype=torch.float64, device="cpu") / steps * T
        rises = torch.diff(softplus(-log_snr(t), threshold=40), prepend=t.new_zeros(1))
        betas = -torch.expm1(-rises)
        if not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"the log-SNR must be finite and fall at all of {steps} times up to T = {T:g}")
        return cls(betas=tuple(betas.tolist()), T=T, t_min=t_min)

    def respaced(self, respacing: str) -> Self:
        """The chain of some of the steps, with betas of its own, at their times in this chain.

        Args:
            respacing: ``"25"``, ``"10,10"`` or ``"ddim50"``, as ``score_sde.sdes.respacing`` explains them.

        Raises:
            ValueError: the chain has no such steps, or it has times of its own.
        """
        if self.times and not self.original:
            raise ValueError("a chain with times of its own cannot be respaced: give the betas and times of the shorter chain")
        kept = list(kept_steps(len(self.betas), respacing))
        rises = -np.log1p(-np.asarray(self.betas[: kept[-1] + 1]))
        between = np.add.reduceat(rises, [0, *(k + 1 for k in kept[:-1])])
        times = tuple(self.nodes()[kept].tolist())
        return replace(self, betas=tuple(-np.expm1(-between)), times=times, original=self.original or self.betas)

    def nodes(self) -> Tensor:
        """The times at which the steps of the chain end, ``(N,)``, float64, on the CPU."""
        if self.times:
            return torch.tensor(self.times, dtype=torch.float64, device="cpu")
        return torch.arange(1, len(self.betas) + 1, dtype=torch.float64, device="cpu") / len(self.betas) * self.T

    def earlier(self, t: Tensor) -> Tensor:
        """The time one step of the chain before ``t``, in its shape: of a node the node below it, and at the least 0."""
        if not self.times:
            return (t - self.T / len(self.betas)).clamp_min(0)
        nodes = torch.cat([torch.zeros(2, dtype=torch.float64), self.nodes()]).to(t)
        cell = torch.searchsorted(nodes, t.detach().contiguous()).clamp(2, len(nodes) - 1)
        share = (t - nodes[cell - 1]) / (nodes[cell] - nodes[cell - 1])
        return nodes[cell - 2] + share * (nodes[cell - 1] - nodes[cell - 2])

    def integral(self, t: Tensor) -> Tensor:
        return _curve(self.original or self.betas, self._knots, self.T, t.dtype, t.device).value(t)

    def beta(self, t: Tensor) -> Tensor:
        return _curve(self.original or self.betas, self._knots, self.T, t.dtype, t.device).slope(t)

    @property
    def _knots(self) -> tuple[float, ...]:
        """Where the curve passes through its table; none if that is at k T / N."""
        return () if self.original else self.times

    def inverse_integral(self, integral: Tensor) -> Tensor:
        low, high = torch.zeros_like(integral), torch.full_like(integral, self.T)
        for _ in range(64):
            middle = (low + high) / 2
            early = self.integral(middle) < integral
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2


@lru_cache(maxsize=16)
def _curve(betas: tuple[float, ...], times: tuple[float, ...], T: float, dtype: torch.dtype, device: torch.device) -> Cubic:
    nodes = [0.0, *times] if times else np.arange(len(betas) + 1) * (T / len(betas))
    integral = np.concatenate([[0.0], np.cumsum(-np.log1p(-np.asarray(betas)))])
    return monotone_cubic(nodes, integral, dtype, device)


def ddpm_schedule(
    steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    schedule: str = "linear",
    betas: tuple[float, ...] = (),
    respacing: str = "",
    t_min: float = 1e-5,
) -> TabulatedSDE:
    """A table of betas: DDPM's own by default (Ho et al. 2020, Section 4).

    Args:
        steps: number of steps.
        beta_start, beta_end: first and last beta of a ``linear`` table, whatever its length. What guided-diffusion calls linear
            multiplies 1e-4 and 0.02 by 1000 / ``steps``; at 20 steps its last beta is 1, which is refused here.
        schedule: ``linear``, or ``cosine`` for alpha_bar = cos^2 of an angle that rises to pi / 2, with beta at most 0.999
            (Nichol and Dhariwal 2021, Eq. 17).
        betas: a table of one's own, in place of all this.
        respacing: keep some of the steps, as ``TabulatedSDE.respaced`` does: ``25``, ``10,10``, ``ddim50``; by default all.

    Raises:
        ValueError: the schedule is unknown, a beta is not between 0 and 1, or the chain has no such steps.
    """
    require_name("schedule", schedule, ("linear", "cosine"))
    if len(betas) == 0 and schedule == "linear":
        betas = np.linspace(beta_start, beta_end, steps).tolist()
    elif len(betas) == 0:
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).tolist()
    table = TabulatedSDE(betas=tuple(betas), t_min=t_min)
    return table.respaced(respacing) if respacing else table
