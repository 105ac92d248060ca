r"""DPM-Solver (Lu et al. 2022a), single step: Runge-Kutta methods for the noise, the exponential integrated exactly.

With h = lambda_s - lambda_t, and stages at the fractions r of h, the integral of e^-lambda times a noise that changes linearly
with lambda, at the rate told by one stage, gives the step

    u(r) = alpha_r / alpha_t x_t - sigma_r (e^(r h) - 1) epsilon_t
           - sigma_r [(e^(r h) - 1) / (r h) - 1] r / q (epsilon_q - epsilon_t)

to the fraction r, q being the fraction of the latest stage (no second bracket where there is none yet). Two stages with q =
1/2 are of order 2, where the bracket is replaced by (e^h - 1) / 2 (Algorithm 1); the stages 1/3 and 2/3 of order 3 (Algorithm
2). A step of order k costs k evaluations.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import OneStepSolver
from score_sde.solvers.level import Level
from score_sde.solvers.time_grids import TimeGrid
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class DPMSolver(OneStepSolver):
    """DPM-Solver-2 or -3, single step.

    Args:
        steps, grid: as in ``GridSolver``.
        order: 2 or 3, also the evaluations of a step.
    """

    steps: int = 10
    grid: str | TimeGrid = "log_snr"
    order: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {self.order}")

    @property
    def evaluations(self) -> int:
        return self.order

    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        sde = score.sde
        start, end = Level.at(sde, t), Level.at(sde, s)
        first = latest = -start.sigma * score(x, t)
        reached = 0.0
        for fraction in (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3):
            level = Level.between(sde, start, end, fraction)
            state = self._advance(x, start, level, first, latest, reached, fraction)
            latest, reached = -level.sigma * score(state, level.t), fraction
        return self._advance(x, start, end, first, latest, reached, 1.0)

    def _advance(
        self, x: Tensor, start: Level, end: Level, first: Tensor, latest: Tensor, reached: float, fraction: float
    ) -> Tensor:
        h = end.half_log_snr - start.half_log_snr  # r h of the formula
        whole = math.expm1(h)
        state = end.alpha / start.alpha * x - end.sigma * whole * first
        if not reached:
            return state
        slope = whole / 2 if self.order == 2 else whole / h - 1
        return state - end.sigma * slope * fraction / reached * (latest - first)
