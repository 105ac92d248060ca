r"""Predictor-corrector sampling with an annealed Langevin corrector (Song et al. 2021, Algorithms 1 to 5).

The predictor takes a step of the reverse process to the next time s, then the corrector moves the state by Langevin steps
at the score of p_s, which leave p_s invariant up to the error of a finite step:

    x <- x + h score(x, s) + sqrt(2 h) z.

The step is h = 2 (snr sigma(s))^2: NCSN's rule (Song and Ermon 2019, Algorithm 1), with its step at every noise level
proportional to sigma^2, and the snr of Song et al. On N(0, sigma^2) it shrinks the state by 1 - 2 snr^2 and leaves a variance
of sigma^2 / (1 - snr^2), whatever the SDE, the number of steps or the batch.

When it pays. At equal evaluations the predictor takes half as many steps once a corrector follows each of them. With an
exact score this loses as long as the predictor's own error dominates (on Gaussian mixtures up to about 80 evaluations, under
VP, sub-VP and VE alike), and later changes nothing that can be measured. It wins where the score is not exact: with the score
of a mixture off by 20 %, the error of the samples' covariance is a third to a half smaller at 400 evaluations. The benchmarks
``predictor_corrector`` and ``inexact_score`` measure both.

A multistep predictor remembers what the network said before the Langevin steps moved the state. It still converges, but its
order is lost to them: where they are strong, a predictor without memory (DDIM, say) is as good.

Song et al. divide the norms of noise and score instead, h = 2 (snr |z| / |score|)^2, averaged over the batch. Taken
for each sample on its own, as here, the step does not depend on the others, but it explodes where the score vanishes; it is
therefore capped at ``cap`` times the step above. In few dimensions it still widens the samples, since the largest steps are
taken where the score is small; use it for images, to compare with published results.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from torch import Tensor

from score_sde.inputs import whole
from score_sde.score import BoundScore
from score_sde.sdes import SDE
from score_sde.solvers.ancestral import Ancestral
from score_sde.solvers.ddim import DDIM
from score_sde.solvers.deis import DEIS
from score_sde.solvers.dpm_solver import DPMSolver
from score_sde.solvers.dpm_solver_pp import DPMSolverPP, SDEDPMSolverPP
from score_sde.solvers.euler_maruyama import EulerMaruyama
from score_sde.solvers.fixed_steps import GridSolver, History, StepSolver
from score_sde.solvers.gaussian import GaussianReference
from score_sde.solvers.heun import EDM, Heun
from score_sde.solvers.reverse_diffusion import ReverseDiffusion
from score_sde.solvers.stochastic_heun import StochasticHeun
from score_sde.solvers.unipc import UniPC
from score_sde.tables import require_name
from score_sde.tensors import SampleNoise, expand, sum_event


class Corrector(Protocol):
    """Moves a state without changing its time, one evaluation a call."""

    def correct(self, score: BoundScore, x: Tensor, t: Tensor, noise: SampleNoise) -> Tensor:
        """The corrected state, given the state ``x`` ``(B, *D)`` at ``t``."""
        ...


STEP_RULES = ("sigma", "norm_ratio")


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin steps at a fixed time.

    Args:
        snr: signal-to-noise ratio of a step, 0 < snr < 1.
        rule: ``sigma`` for h = 2 (snr sigma)^2, ``norm_ratio`` for h = 2 (snr |z| / |score|)^2 with a cap.
        cap: the largest step of ``norm_ratio``, as a multiple of the step of ``sigma``.
    """

    snr: float = 0.16
    rule: str = "sigma"
    cap: float = 2.0

    def __post_init__(self):
        if not 0 < self.snr < 1:
            raise ValueError(f"snr must lie between 0 and 1, got {self.snr}")
        require_name("step rule", self.rule, STEP_RULES)
        if not self.cap > 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def correct(self, score: BoundScore, x: Tensor, t: Tensor, noise: SampleNoise) -> Tensor:
        gradient, z = score(x, t), noise.normal()
        step = 2 * (self.snr * score.sde.sigma(t)) ** 2
        if self.rule == "norm_ratio":
            ratio = sum_event(z**2) / sum_event(gradient**2).clamp_min(1e-30)
            step = expand((2 * self.snr**2 * ratio).clamp_max(float(self.cap * step)), x)
        return x + step * gradient + (2 * step).sqrt() * z


@dataclass(frozen=True)
class PredictorCorrector(StepSolver):
    """A predictor, and corrector steps after (or before) each of its own.

    Args:
        predictor: a fixed-step solver, whose grid is used.
        corrector: for example ``Langevin(snr=0.16)``.
        corrections: corrector steps per predictor step, one evaluation each.
        first: take them before the predictor's step, at the time from which it starts, in place of after it.
    """

    predictor: GridSolver = EulerMaruyama(steps=500)
    corrector: Corrector = Langevin()
    corrections: int = 1
    first: bool = False

    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.predictor, GridSolver):
            raise ValueError(f"the predictor must be a fixed-step solver, got {self.predictor}")
        whole("corrections", self.corrections, 1)

    def times(self, sde: SDE, t_from: float, t_to: float) -> Tensor:
        return self.predictor.times(sde, t_from, t_to)

    def begin(self, score: BoundScore, x: Tensor, steps: int) -> History:
        return self.predictor.begin(score, x, steps)

    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: History
    ) -> tuple[Tensor, History]:
        if self.first:
            return self.predictor.step(score, self._correct(score, x, t, noise), t, s, noise, history)
        x, history = self.predictor.step(score, x, t, s, noise, history)
        return self._correct(score, x, s, noise), history

    def _correct(self, score: BoundScore, x: Tensor, t: Tensor, noise: SampleNoise) -> Tensor:
        for _ in range(self.corrections):
            x = self.corrector.correct(score, x, t, noise)
        return x

    def with_budget(self, nfe: int) -> Self:
        per_step = self.predictor.evaluations + self.corrections
        return dataclasses.replace(self, predictor=self.predictor.with_cost(nfe, per_step))


PREDICTORS = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "stochastic_heun": StochasticHeun,
    "sde_dpm_solver_pp": SDEDPMSolverPP,
    "edm": EDM,
    "ddim": DDIM,
    "heun": Heun,
    "dpm_solver": DPMSolver,
    "dpm_solver_pp": DPMSolverPP,
    "deis": DEIS,
    "unipc": UniPC,
    "gaussian": GaussianReference,
}
"""Name -> fixed-step solver."""

CORRECTORS = {"langevin": Langevin}
"""Name -> corrector."""


def predictor_corrector(
    steps: int = 500,
    grid: str = "uniform",
    predictor: str = "euler_maruyama",
    corrector: str = "langevin",
    corrections: int = 1,
    first: bool = False,
    snr: float = 0.16,
    rule: str = "sigma",
    cap: float = 2.0,
) -> PredictorCorrector:
    """A ``PredictorCorrector`` from flat arguments, as configs give them."""
    for kind, name, table in (("predictor", predictor, PREDICTORS), ("corrector", corrector, CORRECTORS)):
        require_name(kind, name, table)
    stepping = PREDICTORS[predictor](steps=steps, grid=grid)
    return PredictorCorrector(stepping, CORRECTORS[corrector](snr=snr, rule=rule, cap=cap), corrections, first)
