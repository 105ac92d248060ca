r"""A state carried along the probability-flow ODE together with its log-density (Chen et al. 2018, Theorem 1).

Along dx/dt = v(x, t) the log-density changes by d log p_t(x(t)) / dt = -div v. State and integrals are one state, each integral
counting as one coordinate, and one network pass gives the velocity and its divergence: with v = f x - g^2 score / 2,
div v = f D - g^2 div(score) / 2.

This needs only the sum of the divergence along the trajectory, so each probe of an estimate has an integral of its own, and
their spread tells the error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeGuard

import torch
from torch import Tensor

from score_sde.divergence import Divergence
from score_sde.score import BoundScore, Counter
from score_sde.sdes import SDE
from score_sde.solvers.base import Observer
from score_sde.tensors import condition_of


@dataclass(frozen=True, eq=False)
class Flow:
    """A score bound to its condition, with the probes of one batch: what there is to know along a trajectory."""

    score: BoundScore
    divergence: Divergence
    probes: Tensor | None
    counter: Counter

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def of(self, rows: Tensor) -> "Flow":
        """The same for some samples of the batch, given by their places ``(n,)``."""
        score = BoundScore(self.score.score, condition_of(self.score.cond, rows))
        return Flow(score, self.divergence, None if self.probes is None else self.probes[:, rows], self.counter)

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score ``(B, *D)`` and estimates of its divergence ``(k, B)`` at ``x``; ``t`` is ``()`` or ``(B,)``."""
        value, traces, vjps = self.divergence(lambda point: self.score(point, t), x, self.probes)
        self.counter.vjps += vjps * len(x)
        return value, traces.to(torch.promote_types(traces.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Transported:
    """Where a batch arrived.

    ``state`` ``(B, *D)``; ``changes`` ``(k, B)``, log p at the start minus log p at the end in nats, for each of k estimates of
    the divergence. Of an ``AdaptiveTransport`` alone, else None: ``error`` ``(B,)``, the estimated error of ``changes`` in
    nats, and ``steps`` ``(B,)``, the number of steps that a sample was given, 0 for steps that were chosen as the solution went
    along.
    """

    state: Tensor
    changes: Tensor
    error: Tensor | None = None
    steps: Tensor | None = None

    def of(self, rows: Tensor) -> Self:
        """Of some samples, given by their places ``(n,)``."""
        pick = lambda value: None if value is None else value[rows]
        return replace(
            self, state=self.state[rows], changes=self.changes[:, rows], error=pick(self.error), steps=pick(self.steps)
        )

    def with_rows(self, rows: Tensor, other: Self) -> Self:
        """With ``other`` in the place of the samples ``rows`` ``(n,)``; errors and steps only where both tell them."""
        fill = lambda mine, new: None if mine is None or new is None else mine.index_copy(0, rows, new.to(mine))
        return replace(
            self,
            state=self.state.index_copy(0, rows, other.state),
            changes=self.changes.index_copy(1, rows, other.changes.to(self.changes)),
            error=fill(self.error, other.error),
            steps=fill(self.steps, other.steps),
        )

    def lost(self) -> Self:
        """Nothing but NaN: what could not be solved."""
        state, changes = (torch.full_like(value, math.nan) for value in (self.state, self.changes))
        return replace(self, state=state, changes=changes, error=None if self.error is None else changes[0])


class Transport(Protocol):
    """What carries a state along the ODE together with its log-density: the solver of a likelihood."""

    def transport(self, flow: Flow, x: Tensor, t_from: float, t_to: float, *, observe: Observer | None = None) -> Transported:
        """Carry ``x`` ``(B, *D)`` from ``t_from`` to ``t_to``; ``observe`` is called with the time and a state."""
        ...

    def finer(self) -> Self:
        """The same method with smaller steps: what shows the error of this one."""
        ...

    def describe(self) -> str:
        """The method and its accuracy, in words."""
        ...


class AdaptiveTransport(Transport, Protocol):
    """The optional part: it gives each sample as many steps as that needs, and ``Transported`` tells them and the error."""

    def with_steps(self, steps: int) -> Self:
        """The same method, beginning with another number of steps."""
        ...


def is_adaptive(solver: Transport) -> TypeGuard[AdaptiveTransport]:
    """Whether a transport has the optional part."""
    return hasattr(solver, "with_steps")


def along_ode(flow: Flow, x: Tensor, integrate: Callable[[Callable, Tensor], Tensor]) -> Transported:
    """Carry ``x`` ``(B, *D)``: one ODE for the state and the integral of the divergence.

    Args:
        integrate: solves dy/dt = velocity(t, y), given the velocity and a state ``(B, n)``.
    """
    sde, dim = flow.sde, x[0].numel()
    state = x.to(torch.promote_types(x.dtype, torch.float32))  # in less, the integral would lose what it adds

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        point = y[:, :dim].reshape(x.shape)
        value, traces = flow(point, t)
        change = sde.drift_coefficient(t) * dim - sde.diffusion(t) ** 2 / 2 * traces
        return torch.cat([sde.probability_flow(point, t, value).reshape(len(y), -1), change.T.to(y.dtype)], dim=1)

    start = torch.cat([state.reshape(len(x), -1), state.new_zeros(len(x), flow.divergence.estimates)], dim=1)
    end = integrate(velocity, start)
    return Transported(end[:, :dim].reshape(x.shape).to(x.dtype), end[:, dim:].T)
