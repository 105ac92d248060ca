"""Which class a sample belongs to, by Bayes' rule: log p(y | x) = log p(x | y) + log p(y) - log p(x).

Every class sees a sample with the same probes and the same steps, so that most of their errors cancel in the differences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.divergence import Divergence
from score_sde.inputs import whole
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.ode import log_likelihood
from score_sde.score import Score, require_inputs
from score_sde.solvers.transport import Transport


def class_posterior(
    score: Score,
    x: Tensor,
    classes: int | Tensor,
    *,
    prior: Tensor | Sequence[float] | None = None,
    solver: Transport = DualWeighted(),
    divergence: str | Divergence = "hutchinson",
    seed: int = 0,
    first: int | Sequence[int] = 0,
    progress: bool = False,
) -> Tensor:
    """log p(y | x) in nats, ``(B, C)``: the exponential of each row adds up to 1.

    Args:
        score: a score that is told its condition.
        x: points in model coordinates, ``(B, *D)``; for integers ``model.data.dequantized(values, u)`` with u in [0, 1).
        classes: their number C, for conditions from 0 to C - 1, or the conditions themselves, ``(C, ...)``.
        prior: p(y), ``(C,)``, normalized here; equal by default.
        solver, divergence, seed, first, progress: as for ``log_likelihood``. An estimated divergence decides wrongly where its
            noise, which differs from class to class, is larger than the difference of their log-densities.

    Raises:
        ValueError: there are no classes, or the prior does not fit them.
    """
    conditions = classes if isinstance(classes, Tensor) else torch.arange(whole("classes", classes, 0))
    if conditions.ndim < 1 or not len(conditions):
        raise ValueError("there must be at least one class")
    require_inputs(score, x)
    weights = torch.ones(len(conditions)) if prior is None else torch.as_tensor(prior, dtype=torch.float64)
    if weights.shape != (len(conditions),) or (weights < 0).any() or not 0 < weights.sum() < torch.inf:
        raise ValueError(f"prior must be {len(conditions)} numbers that are not negative, not all zero")
    columns = []
    for condition in conditions.to(x.device):
        cond = condition.expand(len(x), *condition.shape)
        found = log_likelihood(
            score, x, solver=solver, divergence=divergence, cond=cond, seed=seed, first=first, progress=progress
        )
        columns.append(found.log_prob.double())
    return (torch.stack(columns, 1) + weights.double().log().to(x.device)).log_softmax(1)
