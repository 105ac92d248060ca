r"""Langevin dynamics at one level of noise: the sampler of a score without noise levels.

    x <- x + h/2 score(x) + sqrt(h) z                                         (Song and Ermon 2019, Eq. 4)

is Euler's rule for dx = score / 2 dt + dw, which leaves the density of that score as it is. Steps are not adjusted: of N(0, v)
they leave a variance of v / (1 - h / (4 v)) in place of v, and for h above 4 v they explode. The step must be small beside the
squared width of the finest structure of the data, and all steps together large beside that of the data. Where parts of the data
are far from one another, no affordable number of steps carries samples between them (ibid., Section 3.2). This is why there are
noise levels.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from score_sde.inputs import require_finite, whole
from score_sde.score import BoundScore
from score_sde.sdes import SDE, FixedNoise
from score_sde.solvers.fixed_steps import History, StepSolver
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class LangevinDynamics(StepSolver):
    """Unadjusted Langevin dynamics with the score of one density, that of ``FixedNoise``.

    It starts from a normal that is wide beside data of unit scale, or from the ``x_T`` that ``sample`` is given. Its times only
    count the steps: the density is the same at all of them.

    Args:
        steps: number of steps, of one evaluation each.
        step_size: h, in squared model coordinates.

    Raises:
        ValueError: there is no step, or ``step_size`` is not positive and finite.
    """

    steps: int = 1000
    step_size: float = 0.01

    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        whole("steps", self.steps, 1)
        require_finite({"step_size": self.step_size})
        if not self.step_size > 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}")

    def require_sde(self, sde: SDE) -> None:
        """Raise a ``ValueError`` unless ``sde`` has one level of noise."""
        if not isinstance(sde, FixedNoise):
            raise ValueError(
                f"langevin is for a score of one density, as the SDE fixed has it; {type(sde).__name__} has one for each t: "
                "take annealed_langevin, or any other solver"
            )

    def with_budget(self, nfe: int) -> Self:
        return dataclasses.replace(self, steps=nfe)

    def times(self, sde: SDE, t_from: float, t_to: float) -> Tensor:
        return torch.linspace(t_from, t_to, self.steps + 1, dtype=torch.float64, device="cpu")

    def begin(self, score: BoundScore, x: Tensor, steps: int) -> History:
        return History(steps)

    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: History
    ) -> tuple[Tensor, History]:
        x = x + self.step_size / 2 * score(x, t) + math.sqrt(self.step_size) * noise.normal()
        return x, History(history.left - 1)
