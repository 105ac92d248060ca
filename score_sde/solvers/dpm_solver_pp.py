r"""DPM-Solver++ (Lu et al. 2022b), multistep: x0 interpolated in lambda, for any alpha and sigma.

With h = lambda_s - lambda_t, h_0 the step before, c = alpha_s (1 - e^-h) the integral of the kernel, order 2 (2M, Algorithm 2)
is

    x_s = sigma_s / sigma_t x_t + c [x0_t + h / (2 h_0) (x0_t - x0_before)],

which takes the slope of x0 at the middle of the step. Order 3 (3M) integrates the parabola through the last three values
exactly. (Widespread implementations of 3M give its quadratic term half of its weight, and are of order 2.)

The stochastic one (SDE-DPM-Solver++ 2M, Appendix A of the same) solves the reverse-time SDE, whose noise at a step is that of
the forward process: with e^-2h in place of e^-h, the state shrinks by sigma_s / sigma_t e^-h and sigma_s sqrt(1 - e^-2h) z is
added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.sdes import SDE
from score_sde.solvers.interpolation import lagrange_weights
from score_sde.solvers.level import Level
from score_sde.solvers.multistep import Multistep, MultistepHistory
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    """DPM-Solver++ 2M (p = 2) or 3M (p = 3), one evaluation a step, one more at the start of 3M. p = 1 is DDIM."""

    def weights(
        self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: MultistepHistory
    ) -> Sequence[float]:
        if len(levels) < 3:
            return _second_order(levels, start, end, end.half_log_snr - start.half_log_snr)
        return _third_order(tuple(level.half_log_snr for level in levels), start.half_log_snr, end.half_log_snr, end.sigma)


@lru_cache(maxsize=8192)
def _third_order(nodes: tuple[float, ...], start: float, end: float, sigma: float) -> tuple[float, ...]:
    """Weights of three values of x0, by the integral of the parabola through them."""
    return tuple(lagrange_weights(nodes, start, end, lambda u: sigma * math.e**u).tolist())


def _second_order(levels: Sequence[Level], start: Level, end: Level, decay: float) -> tuple[float, ...]:
    """Weights of the last one or two values of x0, the integral of the kernel being alpha_s (1 - e^-decay)."""
    whole = -end.alpha * math.expm1(-decay)
    if len(levels) == 1:
        return (whole,)
    last = levels[1].half_log_snr == start.half_log_snr  # in a first step the other node is made within it, and comes later
    other = levels[0] if last else levels[1]
    slope = whole * (end.half_log_snr - start.half_log_snr) / 2 / (start.half_log_snr - other.half_log_snr)
    return (-slope, whole + slope) if last else (whole + slope, -slope)


@dataclass(frozen=True)
class SDEDPMSolverPP(Multistep):
    """SDE-DPM-Solver++ 2M on the reverse-time SDE, one evaluation a step. p = 1 is ``DDIM`` with eta = 1."""

    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.p > 2:
            raise ValueError(f"p must be 1 or 2, got {self.p}")

    @property
    def order(self) -> int | None:
        return None

    def weights(
        self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: MultistepHistory
    ) -> Sequence[float]:
        return _second_order(levels, start, end, 2 * (end.half_log_snr - start.half_log_snr))

    def carry(self, start: Level, end: Level) -> float:
        return end.sigma / start.sigma * math.exp(start.half_log_snr - end.half_log_snr)

    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: MultistepHistory
    ) -> tuple[Tensor, MultistepHistory]:
        mean, history = super().step(score, x, t, s, noise, history)
        start, end = Level.at(score.sde, t), Level.at(score.sde, s)
        decay = 2 * (end.half_log_snr - start.half_log_snr)
        return mean + end.sigma * math.sqrt(-math.expm1(-decay)) * noise.normal(), history
