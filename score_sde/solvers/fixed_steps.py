r"""Solvers that take a number of steps on a grid chosen beforehand.

From a time t to the next time s < t a solver takes one

    x, history = solver.step(score, x, t, s, noise, history),

where ``history = solver.begin(score, x, steps)`` before the first step. The history is all that a method keeps between steps.
Steps by hand are therefore those of ``solve``, and several methods can take turns on one score.

Who writes a solver derives it from the first class that fits, and writes one method:

    TransitionSolver    transition(score, x, t, s) -> mean, std    a step is a draw from a Gaussian
    OneStepSolver       move(score, x, t, s, noise) -> x           a step needs x alone
    GridSolver          begin and step                             a step needs more than x

Times are 0-dimensional float64 tensors on the CPU. Coefficients computed from them are exact to float64. They mix with a state
on any device without a synchronization.
"""

import dataclasses
import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from score_sde.inputs import whole
from score_sde.score import BoundScore
from score_sde.sdes import SDE
from score_sde.solvers.base import Observer, Solver
from score_sde.solvers.guard import FiniteGuard
from score_sde.solvers.time_grids import TimeGrid, as_grid, time_grid
from score_sde.tensors import SampleNoise


@dataclass(frozen=True, eq=False)
class History:
    """What a method keeps from one step to the next; of a one-step method, the number of steps that are ``left``."""

    left: int


@dataclass(frozen=True)
class StepSolver(Solver):
    """A solver on a grid chosen beforehand."""

    @abstractmethod
    def times(self, sde: SDE, t_from: float, t_to: float) -> Tensor:
        """The grid, float64, from ``t_from`` to ``t_to``."""

    @abstractmethod
    def begin(self, score: BoundScore, x: Tensor, steps: int) -> History:
        """The history before the first of ``steps`` steps, which starts from the state ``x`` ``(B, *D)``."""

    @abstractmethod
    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: History
    ) -> tuple[Tensor, History]:
        """Take one step.

        Args:
            score: the score with its condition.
            x: the state ``(B, *D)`` at ``t``.
            t: the time, 0-dimensional.
            s: the next time, 0-dimensional.
            noise: random numbers; a deterministic solver draws none.
            history: what ``begin`` or the step before returned. It is not changed.

        Returns:
            The state ``(B, *D)`` at ``s``, and the history for the next step.
        """

    def follow(
        self, score: BoundScore, x: Tensor, t_from: float, t_to: float, noise: SampleNoise, observe: Observer | None
    ) -> Tensor:
        guard, grid = FiniteGuard(type(self).__name__), self.times(score.sde, t_from, t_to)
        history = self.begin(score, x, len(grid) - 1)
        for t, s in itertools.pairwise(grid):
            x, history = self.step(score, x, t, s, noise, history)
            guard.watch(float(s), x)
            if observe:
                observe(float(s), x)
        guard.check()
        return x


@dataclass(frozen=True)
class GridSolver(StepSolver):
    """A ``StepSolver`` whose grid is a number of steps and a way to space them.

    Args:
        steps: number of steps.
        grid: a name in ``TIME_GRIDS``, times separated by commas, or a ``TimeGrid``. An explicit list of times sets ``steps``.
    """

    steps: int = 500
    grid: str | TimeGrid = "uniform"

    evaluations: ClassVar[int] = 1
    """Evaluations of a step."""

    @property
    def startup(self) -> int:
        """Evaluations beyond those, made once."""
        return 0

    def __post_init__(self):
        grid = as_grid(self.grid)
        if grid.count is not None:
            object.__setattr__(self, "grid", grid)
            object.__setattr__(self, "steps", grid.count)
        whole("steps", self.steps, 1)

    def times(self, sde: SDE, t_from: float, t_to: float) -> Tensor:
        return time_grid(self.grid, sde, t_from, t_to, self.steps)

    def with_budget(self, nfe: int) -> Self:
        return self.with_cost(nfe, self.evaluations)

    def with_cost(self, nfe: int, per_step: int) -> Self:
        """As many steps as ``nfe`` evaluations allow when a step takes ``per_step``.

        Raises:
            ValueError: that is not one step, or the grid is an explicit list, which has its own number of steps.
        """
        least, steps = per_step + self.startup, (nfe - self.startup) // per_step
        if steps < 1:
            raise ValueError(f"a first step of {type(self).__name__} takes {least} evaluations, got {nfe}")
        if as_grid(self.grid).count not in (None, steps):
            raise ValueError(
                f"the grid is an explicit list of {self.steps} steps, and {nfe} evaluations are not theirs: "
                "leave their number as it is, or choose a grid by its name"
            )
        return dataclasses.replace(self, steps=whole("steps", steps, 1))


@dataclass(frozen=True)
class OneStepSolver(GridSolver):
    """A ``GridSolver`` whose steps need the state alone: subclasses write ``move``."""

    @abstractmethod
    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        """The state ``(B, *D)`` at the next time ``s``, given the state ``x`` ``(B, *D)`` at ``t``."""

    def begin(self, score: BoundScore, x: Tensor, steps: int) -> History:
        return History(steps)

    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: History
    ) -> tuple[Tensor, History]:
        return self.move(score, x, t, s, noise), History(history.left - 1)


@dataclass(frozen=True)
class TransitionSolver(OneStepSolver):
    """A ``OneStepSolver`` whose step is a draw from a Gaussian: subclasses write ``transition``.

    The density of a step is known for these solvers and for no others.
    """

    stochastic: ClassVar[bool] = True

    @abstractmethod
    def transition(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the state at the next time ``s``, given the state ``x`` ``(B, *D)`` at ``t``.

        The mean is ``(B, *D)``. The standard deviation is 0-dimensional or ``(B, *D)``; coordinates are independent. It is 0
        where the solver is deterministic, and in a step to the data itself.
        """

    def move(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise) -> Tensor:
        mean, std = self.transition(score, x, t, s)
        return mean + std * noise.normal() if self.stochastic else mean
