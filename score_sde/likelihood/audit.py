r"""The error that the solver leaves in a likelihood, by solving some samples more finely.

Which samples? Errors are uneven: a few samples may hold nearly all of the mean square. Where the solver estimates its own error
for each sample, half of the audited ones are those with the largest estimates, and the other half stand, evenly spread, for
all the rest (stratified sampling; Cochran 1977, Section 5.3): with d_i the difference of sample i from its finer solution,

    mean square = ( sum_top d_i^2 + N_rest mean_rest d_i^2 ) / N,

and the mean of d likewise. A finer solution starts from the steps that each sample was given: one that had needed 64 gets 128.
Samples that got Runge-Kutta steps of their own have been solved at two tolerances already. Their estimate comes from that
difference, and it stands in for d, without a sign. So does the estimate where there is no finer solution.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from score_sde.likelihood.evaluation import Estimator, Values
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import is_adaptive


@dataclass(frozen=True)
class Audit:
    """Root mean square and mean of the solver's error over all samples, in bits/dim, the standard error of that mean over the
    choice of the samples, and how many were solved more finely."""

    error: float
    bias: float
    bias_stderr: float
    audited: int


def spread(count: int, wanted: int, *, offset: float) -> Tensor:
    """Places of ``wanted`` samples, or of all, evenly spread over ``count``: data is often sorted."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted, dtype=torch.float64) + offset) * (count / max(wanted, 1))).long()


def audit_solver(estimator: Estimator, found: Values, wanted: int, at: Callable[[Tensor, Estimator], Values]) -> Audit:
    """What the solver's error in ``found`` is, from at most ``wanted`` samples.

    Args:
        at: an estimator's values for the samples at some places of the data.
    """
    count = len(found.bits)
    known = torch.zeros(count, dtype=torch.bool) if found.steps is None else found.steps == 0
    candidates = known.logical_not().nonzero()[:, 0]
    top, rest = candidates[:0], candidates
    if found.error is not None and len(candidates) > wanted:
        order = found.error[candidates].argsort(descending=True, stable=True)
        top, rest = candidates[order[: wanted // 2]], candidates[order[wanted // 2 :].sort().values]
    sampled = rest[spread(len(rest), wanted - len(top), offset=0.5)]
    error, difference = _differences(estimator, found, torch.cat([top, sampled]), at)
    weight = len(rest) / max(1, len(sampled))
    weights = torch.cat([torch.ones(len(top)), torch.full((len(sampled),), weight)]).double()
    square = (weights * error.square()).sum()
    if known.any():
        square = square + found.error[known].square().sum()
    among = difference[len(top) :]
    unsure = among.var() * weight * (len(rest) - len(sampled)) if len(among) > 1 else torch.zeros(())
    bias = (weights * difference).sum() / count
    return Audit((square / count).sqrt().item(), bias.item(), unsure.sqrt().item() / count, len(difference))


def _differences(
    estimator: Estimator, found: Values, places: Tensor, at: Callable[[Tensor, Estimator], Values]
) -> tuple[Tensor, Tensor]:
    """Of the samples at ``places``: the size of the error, and the error with its sign, 0 where that is not known."""
    solver, finer = estimator.solver, torch.full((len(places),), torch.nan, dtype=torch.float64)
    if found.steps is not None and is_adaptive(solver):
        for steps in found.steps[places].unique().long().tolist():
            those = (found.steps[places] == steps).nonzero()[:, 0]
            twice = solver.with_steps(steps).finer()
            with suppress(SolverError):  # none of them
                finer[those] = at(places[those], replace(estimator, solver=twice)).bits
    elif len(places):
        finer = at(places, replace(estimator, solver=solver.finer())).bits
    difference = found.bits[places] - finer
    missing = difference.isfinite().logical_not()
    if found.error is None:
        return difference.abs(), difference
    return torch.where(missing, found.error[places], difference.abs()), torch.where(missing, 0.0, difference)
