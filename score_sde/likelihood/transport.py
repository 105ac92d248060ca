r"""A state carried along the probability-flow ODE together with its log-density (Chen et al. 2018, Theorem 1).

Along dx/dt = v(x, t) the log-density changes by d log p_t(x(t)) / dt = -div v. State and integrals are one state, each integral
counting as one coordinate, and one network pass gives the velocity and its divergence: with v = f x - g^2 score / 2,
div v = f D - g^2 div(score) / 2.

This needs only the sum of the divergence along the trajectory, so each probe of an estimate has an integral of its own, and
their spread tells the error.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from score_sde.likelihood.flow import Flow
from score_sde.solvers.probability_flow import ProbabilityFlow


@dataclass(frozen=True, eq=False)
class Transported:
    """Where a batch arrived.

    ``state`` ``(B, *D)``; ``changes`` ``(k, B)``, log p at the start minus log p at the end in nats, for each of k estimates of
    the divergence. Where the solver tells, ``error`` ``(B,)`` is the estimated error of ``changes`` in nats, and ``steps``
    ``(B,)`` the number of steps that a sample was given, 0 for steps that were chosen as the solution went along.
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
        """With ``other`` in the place of the samples ``rows`` ``(n,)``; both tell errors and steps."""
        return Transported(
            self.state.index_copy(0, rows, other.state),
            self.changes.index_copy(1, rows, other.changes.to(self.changes)),
            self.error.index_copy(0, rows, other.error.to(self.error)),
            self.steps.index_copy(0, rows, other.steps),
        )

    def lost(self) -> Self:
        """Nothing but NaN: what could not be solved."""
        state, changes, error = (torch.full_like(value, math.nan) for value in (self.state, self.changes, self.error))
        return replace(self, state=state, changes=changes, error=error)


def transport(
    solver: ProbabilityFlow, flow: Flow, x: Tensor, t_from: float, t_to: float, observe, *, partial: bool = False
) -> Transported:
    """Carry ``x`` ``(B, *D)`` from ``t_from`` to ``t_to``: one ODE for the state and the integral of the divergence.

    With ``partial``, samples that cannot be solved end as NaN, as long as there is another one that can be.
    """
    sde, dim = flow.sde, x[0].numel()
    state = x.to(torch.promote_types(x.dtype, torch.float32))  # in less, the integral would lose what it adds

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        point = y[:, :dim].reshape(x.shape)
        value, traces = flow(point, t)
        change = sde.drift_coefficient(t) * dim - sde.diffusion(t) ** 2 / 2 * traces
        return torch.cat([sde.probability_flow(point, t, value).reshape(len(y), -1), change.T.to(y.dtype)], dim=1)

    start = torch.cat([state.reshape(len(x), -1), state.new_zeros(len(x), flow.divergence.estimates)], dim=1)
    end = solver.integrate(velocity, start, t_from, t_to, sde, observe=observe, partial=partial)
    return Transported(end[:, :dim].reshape(x.shape).to(x.dtype), end[:, dim:].T)
