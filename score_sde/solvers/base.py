r"""What every solver shares: counting, time grids, the loop, and sampling on top of it.

A solver carries a state from one time to another along the reverse-time SDE or the probability-flow ODE. ``solve`` does
that; ``sample`` draws x_T from the prior, solves down to t_min, and reports what it cost. A fixed-step solver writes one
``step(score, x, t, s, noise)`` from t to the next time s. Times are 0-dimensional float64 tensors on the CPU: coefficients
computed from them are exact to float64 and mix with a state on any device without a synchronization.

The optional last step replaces x by the posterior mean of the data given x (Tweedie's formula, Robbins 1956),

    E[x0 | x] = (x + sigma^2 score) / alpha.
"""

import dataclasses
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from score_sde.inputs import require_batch, require_interval, require_time, whole
from score_sde.progress import TimeProgress
from score_sde.score import (
    BoundScore,
    ClippedScore,
    Counter,
    Score,
    counted,
    draw_latents,
    innermost,
    posterior_mean,
    require_conditions,
    require_inputs,
    require_path,
)
from score_sde.sdes import SDE
from score_sde.solvers.time_grids import TimeGrid, as_grid, time_grid
from score_sde.tensors import SampleNoise

Observer = Callable[[float, Tensor], None]
"""Called with the time and the state after each step."""


class SolverError(RuntimeError):
    """A solver could not go on; the message names the time, the evaluations spent, and a remedy."""


@dataclass(frozen=True)
class Sample:
    """What a solver returns.

    ``x`` ``(B, *D)`` in model coordinates; ``nfe``, the counted network evaluations, the last denoising step included;
    ``denoised``, whether that step was taken; ``seconds``, the wall time; where asked for, ``times`` and ``trajectory``
    ``(n + 1, B, *D)``, every state from x_T on.
    """

    x: Tensor
    nfe: int
    denoised: bool
    seconds: float
    times: tuple[float, ...] = ()
    trajectory: Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """Carries a state along the reverse-time SDE or the probability-flow ODE."""

    stochastic: ClassVar[bool] = False

    @property
    def order(self) -> int | None:
        """Convergence order of the error at the end in the number of steps, None where there is none."""
        return None

    @abstractmethod
    def with_budget(self, nfe: int) -> Self:
        """The same solver with at most ``nfe`` evaluations, as near to it as its steps allow."""

    @abstractmethod
    def solve(
        self,
        score: Score,
        x: Tensor,
        t_from: float,
        t_to: float,
        *,
        cond: Tensor | None = None,
        noise: SampleNoise | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Carry the state ``x`` ``(B, *D)`` from ``t_from`` to ``t_to``.

        Args:
            score: the score, which also carries the SDE.
            cond: condition passed to the score, ``(B, ...)``.
            noise: random numbers of a stochastic solver; by default those of seed 0.
            observe: called after every step with the time and the state.

        Returns:
            The state at ``t_to``, ``(B, *D)``.

        Raises:
            SolverError: the state stopped being finite.
        """

    def sample(
        self,
        score: Score,
        shape: Sequence[int] | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        x_T: Tensor | None = None,
        cond: Tensor | None = None,
        t_end: float | None = None,
        denoise: bool = False,
        clip: tuple[float, float] | tuple[Tensor, Tensor] | None = None,
        trajectory: bool = False,
        progress: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Sample:
        """Draw x_T from the prior (or take it) and solve down to ``t_end``.

        Args:
            score: the score, which also carries the SDE.
            shape: ``(B, *D)``; not needed where ``x_T`` is given.
            seed: sample i depends on ``seed`` and ``first + i`` alone, whatever the size of the batch.
            first: index of the first sample.
            x_T: states at T, ``(B, *D)``.
            cond: condition passed to the score, ``(B, ...)``.
            t_end: time at which to stop; by default the SDE's t_min.
            denoise: replace the last state by the posterior mean of the data, at one more evaluation.
            clip: interval in model coordinates to which the implied x0 is clipped at every evaluation; two numbers, or two
                tensors that meet ``(B, *D)``, as ``DataSpec.model_limits`` gives them.
            trajectory: keep all states.
            progress: show a progress bar.
            device, dtype: where to draw; by default the score's own.

        Raises:
            SolverError: the state stopped being finite.
            ValueError: ``shape`` and ``x_T`` are both absent, disagree, hold no sample or are not of the score's data; x_T is
                not finite or holds integers; ``t_end`` is outside [t_min, T); ``clip`` does not rise.
        """
        start = time.perf_counter()
        sde = score.sde
        sde.require_ends()
        t_end = sde.t_min if t_end is None else t_end
        require_time("t_end", t_end, sde.t_min, sde.T, below=True)
        if clip is not None:
            require_interval("clip", clip)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        if x_T is not None:
            require_inputs(score, x_T, cond, name="x_T")
            if shape is not None and tuple(shape) != tuple(x_T.shape):
                raise ValueError(f"shape is {tuple(shape)}, but x_T has shape {tuple(x_T.shape)}")
            x_T = x_T.to(device or x_T.device, dtype or x_T.dtype)
        elif shape is None:
            raise ValueError("give the shape (B, *D) of the samples, or x_T")
        else:
            require_batch("shape", shape, getattr(innermost(score), "event", None))
            require_conditions(cond, shape[0])
        counter = Counter()
        score = counted(score, counter)
        if clip is not None:
            score = ClippedScore(score, *clip)
        states: list[Tensor] = []
        times: list[float] = []
        with torch.no_grad(), TimeProgress(self, sde.T, t_end, shown=progress) as bar:

            def observe(t: float, x: Tensor) -> None:
                if trajectory:
                    times.append(t)
                    states.append(x)
                bar.reach(t, counter.nfe)

            if x_T is None:
                x_T = draw_latents(score, shape, seed=seed, first=first, device=device, dtype=dtype)
            x, noise = x_T, None
            observe(sde.T, x)
            if self.stochastic:
                noise = SampleNoise(seed, x.shape, first=first, purpose="steps", device=x.device, dtype=x.dtype)
            watched = observe if trajectory or progress else None
            x = self.solve(score, x, sde.T, t_end, cond=cond, noise=noise, observe=watched)
            if denoise:
                x = posterior_mean(BoundScore(score, cond), x, t_end)
        path = torch.stack(states) if trajectory else None
        return Sample(x, counter.nfe, denoise, time.perf_counter() - start, tuple(times), path)


@dataclass(frozen=True)
class StepSolver(Solver):
    """A solver on a grid chosen beforehand: subclasses write ``times`` and one ``step``."""

    @abstractmethod
    def times(self, sde: SDE, t_from: float, t_to: float) -> Tensor:
        """The grid, float64, from ``t_from`` to ``t_to``."""

    @abstractmethod
    def step(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise | None) -> Tensor:
        """The state at the next time ``s``, given the state ``x`` ``(B, *D)`` at ``t``; both times are 0-dimensional."""

    def solve(self, score, x, t_from, t_to, *, cond=None, noise=None, observe=None):
        require_path(score, x, t_from, t_to)
        if self.stochastic and t_to > t_from:
            raise ValueError(f"{type(self).__name__} goes from noise to data only: got t from {t_from} to {t_to}")
        if self.stochastic and noise is None:
            noise = SampleNoise(0, x.shape, purpose="steps", device=x.device, dtype=x.dtype)
        bound, guard = BoundScore(score, cond), FiniteGuard(type(self).__name__)
        grid = self.times(score.sde, t_from, t_to)
        for left, (t, s) in zip(range(len(grid) - 1, 0, -1), itertools.pairwise(grid), strict=True):
            bound.memory["left"] = left
            x = self.step(bound, x, t, s, noise)
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


class FiniteGuard:
    """Notes after each step, on the device, whether the state is finite, and looks at the notes only now and then."""

    def __init__(self, solver: str, *, unit: str = "step", every: int = 64):
        self.solver, self.unit, self.every = solver, unit, every
        self.seen, self.times, self.notes = 0, [], []

    def watch(self, t: float | Tensor, x: Tensor) -> None:
        """Note whether ``x``, reached at ``t``, is finite."""
        self.seen += 1
        self.times.append(t)
        if x.numel():
            self.notes.append(torch.linalg.vector_norm(x, math.inf))  # one kernel, and NaN and infinity survive it
        if len(self.notes) == self.every:
            self.check()

    def check(self) -> None:
        """Raise a ``SolverError`` if a noted state was not finite."""
        if self.notes:
            finite = torch.stack(self.notes).isfinite().tolist()
            if not all(finite):
                bad = finite.index(False)
                step = self.seen - len(finite) + bad + 1
                raise SolverError(non_finite(self.solver, float(self.times[bad]), f"{self.unit} {step}"))
        self.times, self.notes = [], []


def non_finite(solver: str, t: float, spent: str) -> str:
    """The sentence for a state that is not finite any more."""
    return (
        f"{solver}: the state is not finite at t = {t:.3g}, {spent}; the score returned NaN, or the steps are too "
        "large: try more steps or a smaller tolerance, clip x0, or check the model at this time"
    )
