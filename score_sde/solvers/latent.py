r"""Latents of data: the probability-flow ODE run forwards, and back (Song et al. 2021, Section 4.3).

The ODE is a bijection between data and x_T. What lies between two data points is decoded from what lies between their latents,
on the arc that keeps the length typical of the prior (spherical interpolation; Song, Meng and Ermon 2021, Section 5.3):

    x_T(w) = sin((1 - w) theta) / sin(theta) x_T(0) + sin(w theta) / sin(theta) x_T(1),   theta the angle between the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.score import Score, require_inputs
from score_sde.solvers.base import Solver
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.tensors import Condition, expand, sum_event

EXACT = ProbabilityFlow(method="rk45")


@torch.no_grad()
def encode(score: Score, x: Tensor, solver: Solver = EXACT, *, cond: Condition | None = None) -> Tensor:
    """The latents ``(B, *D)`` at T of data ``x`` ``(B, *D)`` in model coordinates, taken as states at t_min.

    Raises:
        SolverError: the state stopped being finite.
        ValueError: the solver is stochastic, or the states are not finite floating-point numbers of the shape of the data.
    """
    _require_deterministic(solver)
    require_inputs(score, x, cond)
    return solver.solve(score, x, score.sde.t_min, score.sde.T, cond=cond)


@torch.no_grad()
def decode(score: Score, latent: Tensor, solver: Solver = EXACT, *, cond: Condition | None = None) -> Tensor:
    """The data ``(B, *D)`` at t_min of latents ``(B, *D)`` at T: back to ``x`` from ``encode``, to the solver's accuracy.

    Data that the model finds very unlikely lies where the flow spreads apart, and comes back less well, or not at all.

    Raises:
        SolverError: the state stopped being finite.
        ValueError: the solver is stochastic, or the states are not finite floating-point numbers of the shape of the data.
    """
    _require_deterministic(solver)
    require_inputs(score, latent, cond, name="latent")
    return solver.solve(score, latent, score.sde.T, score.sde.t_min, cond=cond)


def interpolate(
    score: Score,
    start: Tensor,
    end: Tensor,
    weights: Sequence[float],
    solver: Solver = EXACT,
    *,
    cond: Tensor | None = None,
) -> Tensor:
    """Data between ``start`` and ``end``, both ``(B, *D)`` in model coordinates, by way of their latents.

    Args:
        score: the score, which also carries the SDE.
        start, end: the data at weight 0 and 1.
        weights: n places between them.
        solver: a deterministic solver.
        cond: condition of both, ``(B, ...)``.

    Returns:
        ``(n, B, *D)``.

    Raises:
        SolverError: the state stopped being finite.
        ValueError: the two differ in shape, there are no weights, or the solver is stochastic.
    """
    if start.shape != end.shape or not len(weights):
        raise ValueError(f"give two batches of one shape and some weights, got {tuple(start.shape)} and {tuple(end.shape)}")
    require_finite({f"weight {i}": weight for i, weight in enumerate(weights)})
    first, last = (encode(score, x, solver, cond=cond) for x in (start, end))
    between = torch.cat([spherical(first, last, weight) for weight in weights])
    conds = None if cond is None else torch.cat([cond] * len(weights))
    return decode(score, between, solver, cond=conds).reshape(len(weights), *start.shape)


def spherical(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point at ``weight`` of the arc from ``a`` to ``b``, sample by sample; of the line where they are parallel."""
    cosine = sum_event(a * b) / (sum_event(a**2) * sum_event(b**2)).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
    angle = cosine.clamp(-1, 1).arccos()
    sine = angle.sin()
    flat = sine < 1e-4
    shares = [torch.where(flat, share, (share * angle).sin() / torch.where(flat, 1.0, sine)) for share in (1 - weight, weight)]
    return expand(shares[0], a) * a + expand(shares[1], b) * b


def _require_deterministic(solver: Solver) -> None:
    if solver.stochastic:
        raise ValueError(f"latents need a deterministic solver, and {type(solver).__name__} is stochastic: take ode or unipc")
