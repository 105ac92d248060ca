r"""EDM's samplers (Karras et al. 2022): Heun's method in the noise level, and noise added before each of its steps.

With y = x / alpha and the noise level rho = sigma / alpha, the probability-flow ODE of any linear SDE is dy / drho = epsilon.
Heun's method takes the mean of the noise at both ends of a step (Algorithm 1): order 2, two evaluations.

The stochastic sampler (Algorithm 2) first raises the noise level to rho' = (1 + gamma) rho by adding
sqrt(rho'^2 - rho^2) S_noise z to y. Here gamma = min(S_churn / N, sqrt(2) - 1) for N steps, and 0 where rho lies outside S_min
and S_max. Then it takes Heun's step from rho', which goes no further than rho(T).
EDM's last step is one of Euler's to rho = 0; here the last time is not 0, and ``denoise=True`` is that step.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import OneStepSolver
from score_sde.solvers.level import Level
from score_sde.solvers.time_grids import TimeGrid
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class Heun(OneStepSolver):
    """EDM's deterministic sampler, of order 2, two evaluations a step."""

    steps: int = 18
    grid: str | TimeGrid = "edm"

    evaluations: ClassVar[int] = 2

    @property
    def order(self) -> int | None:
        return 2

    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        start, end = Level.at(score.sde, t), Level.at(score.sde, s)
        rise = end.noise_level - start.noise_level
        first = -start.sigma * score(x, t)
        y = x / start.alpha
        second = -end.sigma * score(end.alpha * (y + rise * first), s)
        return end.alpha * (y + rise / 2 * (first + second))


@dataclass(frozen=True)
class EDM(Heun):
    """EDM's sampler with churn, two evaluations a step.

    By default nothing is added, as in the deterministic sampler of the paper. For a VP model of CIFAR-10 it has s_churn = 30,
    with the other defaults as they are here (Karras et al. 2022, Table 5).

    Args:
        steps, grid: as in ``GridSolver``.
        s_churn: noise to be added over all steps; 0 for none.
        s_min, s_max: noise levels sigma / alpha between which it is added.
        s_noise: factor of its standard deviation.
    """

    s_churn: float = 0.0
    s_min: float = 0.01
    s_max: float = 1.0
    s_noise: float = 1.007

    def __post_init__(self):
        super().__post_init__()
        require_finite({"s_churn": self.s_churn, "s_noise": self.s_noise})
        if self.s_churn < 0 or self.s_noise < 0 or not 0 <= self.s_min <= self.s_max:
            raise ValueError(
                f"s_churn and s_noise must not be negative, and 0 <= s_min <= s_max, got {self.s_churn}, {self.s_noise}, "
                f"{self.s_min} and {self.s_max}"
            )

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    @property
    def order(self) -> int | None:
        return None if self.stochastic else super().order

    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        sde = score.sde
        rho = float(sde.noise_level(t))
        z = noise.normal()  # also where none is added: the noise of a step does not depend on s_min and s_max
        if self.stochastic and self.s_min <= rho <= self.s_max:
            gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
            raised = sde.inverse_log_snr(-2 * math.log((1 + gamma) * rho)).clamp_max(sde.T)
            alpha, up = sde.alpha(raised), sde.noise_level(raised)
            x, t = alpha * (x / sde.alpha(t) + self.s_noise * (up**2 - rho**2).clamp_min(0).sqrt() * z), raised
        return super().move(score, x, t, s, noise)
