r"""Samples and their log-densities by one solution of the probability-flow ODE.

Going down from T, the state and the integral of the divergence are carried together,

    log p_{t_min}(x(t_min)) = log p_T(x_T) + \int_{t_min}^T div v(x(t), t) dt,

so that a sample knows its density when it is drawn, at the cost of the divergence, instead of being solved back to T for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.divergence import Divergence, as_divergence
from score_sde.inputs import require_batch
from score_sde.likelihood.ode import of_prior
from score_sde.progress import TimeProgress
from score_sde.score import BoundScore, Score, counting, draw_latents, event_of, require_conditions, require_inputs
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.solvers.transport import Flow
from score_sde.tensors import Condition, SampleNoise


@dataclass(frozen=True)
class ScoredSample:
    """What was drawn, and what it took.

    ``x`` ``(B, *D)`` in model coordinates, ``log_prob`` ``(B,)`` in nats at t_min, ``x_T`` ``(B, *D)``; network forwards and
    vector-Jacobian products, averaged over the samples; ``probe_variance`` as in ``LogLikelihood``.
    """

    x: Tensor
    log_prob: Tensor
    x_T: Tensor
    nfe: float
    vjps: float
    probe_variance: Tensor | None


def sample_with_log_prob(
    score: Score,
    shape: Sequence[int],
    *,
    solver: ProbabilityFlow = ProbabilityFlow(method="rk45"),
    divergence: str | Divergence = "exact",
    prior: Callable[[Tensor], Tensor] | None = None,
    cond: Condition | None = None,
    x_T: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    progress: bool = False,
) -> ScoredSample:
    """Draw samples by the ODE, with their log-densities under the model.

    Args:
        score: the score, which also carries the SDE.
        shape: ``(B, *D)``.
        solver: how the ODE is solved. The log-density is stiffer than the state: a few fixed steps that are enough for the
            one can be wrong by nats in the other.
        divergence: as in ``log_likelihood``.
        prior: log-density at T in nats, ``(B, *D)`` to ``(B,)``; by default the SDE's.
        cond: condition passed to the score: a tensor ``(B, ...)``, or several by their names.
        x_T: states at T, by default drawn from the prior: the same as ``solver.sample`` draws from this seed.
        seed, first: sample i and its probes depend on ``seed`` and ``first + i`` alone.
        progress: show a progress bar.

    Raises:
        SolverError: the state stopped being finite.
        TypeError: the SDE is not linear, or the solver is not a ``ProbabilityFlow``.
        ValueError: the divergence is unknown, or ``shape`` and ``x_T`` disagree.
    """
    if not isinstance(solver, ProbabilityFlow):
        raise TypeError(f"log p along the way needs a ProbabilityFlow, got {type(solver).__name__}")
    score.sde.require_ends()
    require_batch("shape", shape, event_of(score))
    require_conditions(cond, shape[0])
    if x_T is not None:
        require_inputs(score, x_T, cond, name="x_T")
        if tuple(shape) != tuple(x_T.shape):
            raise ValueError(f"shape is {tuple(shape)}, but x_T has shape {tuple(x_T.shape)}")
    divergence, sde = as_divergence(divergence), score.sde
    if x_T is None:
        x_T = draw_latents(score, shape, seed=seed, first=first)
    noise = SampleNoise(seed, x_T.shape, first=first, purpose="probes", device=x_T.device, dtype=x_T.dtype)
    shown = TimeProgress(solver, sde.T, sde.t_min, shown=progress)
    with torch.no_grad(), counting(score) as (counted, counter), shown as bar:
        flow = Flow(BoundScore(counted, cond), divergence, divergence.draw(noise), counter)
        end = solver.transport(flow, x_T, sde.T, sde.t_min, observe=lambda t, state: bar.reach(t, counter.nfe))
        log_prob = of_prior(prior or sde.prior_log_prob, x_T) - end.changes.mean(0)
    x, variance = end.state, divergence.variance(end.changes, x_T[0].numel())
    return ScoredSample(x, log_prob, x_T, counter.samples / len(x), counter.vjps / len(x), variance)
