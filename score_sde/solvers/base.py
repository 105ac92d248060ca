r"""A solver, and sampling on top of it.

A solver carries a state from one time to another along the reverse-time SDE or the probability-flow ODE: ``solve``. ``sample``
draws x_T from the prior, solves down to t_min, and reports what it cost.

The optional last step replaces x by the posterior mean of the data given x (Tweedie's formula, Robbins 1956),

    E[x0 | x] = (x + sigma^2 score) / alpha.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from score_sde.inputs import require_batch, require_interval, require_states, require_time
from score_sde.progress import TimeProgress
from score_sde.score import (
    BoundScore,
    ClippedScore,
    Score,
    counting,
    draw_latents,
    event_of,
    posterior_mean,
    require_conditions,
    require_path,
    require_score,
)
from score_sde.sdes import SDE
from score_sde.tensors import Condition, SampleNoise

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

    def require_sde(self, sde: SDE) -> None:
        """Raise a ``ValueError`` unless the solver takes ``sde``: by default, one whose log-SNR falls all the way."""
        sde.require_ends()

    @abstractmethod
    def with_budget(self, nfe: int) -> Self:
        """The same solver with at most ``nfe`` evaluations, as near to it as its steps allow."""

    def solve(
        self,
        score: Score,
        x: Tensor,
        t_from: float,
        t_to: float,
        *,
        cond: Condition | None = None,
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
            ValueError: the solver does not take the SDE, the state or a time is none that the score takes, or a stochastic
                solver is to go from data to noise.
        """
        require_score(score)
        self.require_sde(score.sde)
        require_path(score, x, t_from, t_to)
        if self.stochastic and t_to > t_from:
            raise ValueError(f"{type(self).__name__} goes from noise to data only: got t from {t_from} to {t_to}")
        if noise is None:
            noise = SampleNoise(0, x.shape, purpose="steps", device=x.device, dtype=x.dtype)
        return self.follow(BoundScore(score, cond), x, t_from, t_to, noise, observe)

    @abstractmethod
    def follow(
        self, score: BoundScore, x: Tensor, t_from: float, t_to: float, noise: SampleNoise, observe: Observer | None
    ) -> Tensor:
        """What ``solve`` does when its arguments are checked: the state at ``t_to``, ``(B, *D)``."""

    def sample(
        self,
        score: Score,
        shape: Sequence[int] | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        x_T: Tensor | None = None,
        cond: Condition | None = None,
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
            TypeError: it is called on the class of a solver.
            ValueError: ``score`` carries no SDE, or one that the solver does not take; ``shape`` and ``x_T`` are both absent,
                disagree, hold no sample or are not of the score's data; x_T is not finite or holds integers; ``t_end`` is
                outside [t_min, T); ``clip`` does not rise, or there is no noise at ``t_end``.
        """
        if not isinstance(self, Solver):  # DDIM.sample(score, shape): the score is self
            raise TypeError("a solver must be an instance: DDIM().sample(score, shape), not DDIM.sample(score, shape)")
        require_score(score)
        start, sde = time.perf_counter(), score.sde
        self.require_sde(sde)
        t_end = sde.t_min if t_end is None else t_end
        require_time("t_end", t_end, sde.t_min, sde.T, below=True)
        if clip is not None:
            require_interval("clip", clip)
            if not sde.sigma(t_end) > 0:
                raise ValueError("clip is for the x0 that a state with noise implies, and here sigma is 0: leave it away")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        if x_T is not None:
            require_states("x_T", x_T, event_of(score))
            require_conditions(cond, len(x_T))
            if shape is not None and tuple(shape) != tuple(x_T.shape):
                raise ValueError(f"shape is {tuple(shape)}, but x_T has shape {tuple(x_T.shape)}")
            x_T, shape = x_T.to(device or x_T.device, dtype or x_T.dtype), x_T.shape
        elif shape is None:
            raise ValueError("give the shape (B, *D) of the samples, or x_T")
        else:
            require_batch("shape", shape, event_of(score))
            require_conditions(cond, shape[0])
        states: list[Tensor] = []
        times: list[float] = []
        with torch.no_grad(), counting(score) as (counted, counter), TimeProgress(self, sde.T, t_end, shown=progress) as bar:
            score = counted if clip is None else ClippedScore(counted, *clip)

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
