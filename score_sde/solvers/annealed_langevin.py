r"""Annealed Langevin dynamics (Song and Ermon 2019, Algorithm 1; 2020, Algorithm 1): the sampler of NCSN.

From one noise level to the next nothing is removed by a step of the reverse process: Langevin steps at the new level do all the
work,

    x <- x + h score(x, s) + sqrt(2 h) z,   h = 2 (snr sigma_s)^2.

Before them the state is rescaled by alpha_s / alpha_t, so that the data in it has the factor that it has at s. This leaves its
noise, in units of the data, as it was at t; with alpha = 1 nothing happens.

One number states the step, snr. The papers give epsilon in step sizes epsilon sigma_s^2 / sigma_L^2, where sigma_L is the last
sigma. The step of the first paper is 2 h, that of the second h:

    2019    snr = sqrt(epsilon) / (2 sigma_L)      0.22 for epsilon = 2e-5, sigma_L = 0.01
    2020    snr = sqrt(epsilon / 2) / sigma_L      0.18 for epsilon = 6.2e-6, sigma_L = 0.01

Which snr suits depends on how far apart the levels are. Where all data is one point, let gamma be the ratio of the noise levels
sigma / alpha at t and at s. The variance of the state beside that of its level, v, becomes after T steps

    q gamma^2 v + (1 - q) / (1 - snr^2),   q = (1 - 2 snr^2)^(2 T)

(Song and Ermon 2020, Proposition 3). Repeated from level to level it settles at

    v = (1 - q) / ((1 - snr^2) (1 - q gamma^2)),   if q gamma^2 < 1.

It should be 1 (ibid., Technique 4): it is larger, since steps too small do not keep up with the levels, and too large ones add
a variance of their own. The snr that makes v smallest is the default. For a sigma from 50 to 0.01 in 232 levels with T = 5, the
setting of the second paper for images of 32 x 32, it is 0.24, and v = 1.10. The excess falls as the square root of the number
of evaluations only: Gaussian samples of these 1,160 have a variance that is 7 % (VE) to 12 % (sub-VP) too large.

The final denoising of the second paper is ``denoise=True`` of ``sample``.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

from torch import Tensor

from score_sde.inputs import whole
from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import OneStepSolver
from score_sde.solvers.predictor_corrector import Langevin
from score_sde.solvers.time_grids import TimeGrid, as_grid
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class AnnealedLangevin(OneStepSolver):
    """Annealed Langevin dynamics, ``steps`` levels with ``corrections`` Langevin steps at each, one evaluation a Langevin step.

    x_T, drawn from the prior, already has the noise of the time from which the solver starts: the levels are those that follow,
    down to the end.

    Args:
        steps: number of noise levels, L.
        grid: time grid; ``log_snr`` has a geometric sequence of sigma / alpha.
        corrections: Langevin steps at each level, T.
        snr: signal-to-noise ratio of a Langevin step, 0 < snr < 1, as of ``Langevin``; 0 for the one that suits the distance of
            a level from the one before it.
    """

    steps: int = 232
    grid: str | TimeGrid = "log_snr"
    corrections: int = 5
    snr: float = 0.0

    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        whole("corrections", self.corrections, 1)
        if not 0 <= self.snr < 1:
            raise ValueError(f"snr must lie between 0 and 1, or be 0 for one that suits the levels, got {self.snr}")

    @property
    def evaluations(self) -> int:
        return self.corrections

    def with_budget(self, nfe: int) -> Self:
        """Levels, and steps at each, in about the proportion of this one; with an explicit grid, the same steps at each."""
        if as_grid(self.grid).count is not None or nfe < 1:
            return self.with_cost(nfe, self.corrections)
        shrinkage = math.sqrt(nfe / (self.steps * self.corrections))
        corrections = max(1, round(self.corrections * shrinkage))
        return dataclasses.replace(self, corrections=corrections).with_cost(nfe, corrections)

    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        sde = score.sde
        x = sde.alpha(s) / sde.alpha(t) * x
        rise = round(float(sde.log_snr(s) - sde.log_snr(t)), 6)
        corrector = Langevin(self.snr or suitable_snr(rise, self.corrections))
        for _ in range(self.corrections):
            x = corrector.correct(score, x, s, noise)
        return x


@lru_cache(maxsize=4096)
def suitable_snr(rise: float, corrections: int) -> float:
    """The snr of least v for levels whose log-SNR differs by ``rise`` = 2 log gamma, with ``corrections`` steps at each."""

    def excess(snr: float) -> float:
        q = (1 - 2 * snr**2) ** (2 * corrections)
        slack = -math.expm1(rise + math.log(q)) if q > 0 else 1.0
        return (1 - q) / ((1 - snr**2) * slack) if slack > 0 else math.inf

    # v is infinite for small snr, then falls to its minimum, then rises; 1 / sqrt(2) forgets the state in one step
    return min((math.sqrt(0.5) * k / 500 for k in range(1, 501)), key=excess)
