r"""Where the error of a likelihood comes from, by computing some samples again.

The value of sample i is y_i = mu_i + d_i + p_i + b_i, where mu_i is the sample's own, d_i comes from the draw of
dequantization, p_i from that of the probes and b_i from the solver. The standard error of the mean of y contains all but b.

*Draws.* With a second draw of dequantization and the same probes, the mean square change of y is twice the variance of d. With
a second draw of the probes it is twice that of p. Where there are several probes, their own spread gives the variance of p, on
all samples.

*The solver.* A finer solver changes y by -b. The errors are uneven: a few samples may hold nearly all of the mean square. Some
solvers estimate their own error for each sample. Then half of the audited samples are those with the largest estimates. The
other half are evenly spread, and stand for all the rest (stratified sampling; Cochran 1977, Section 5.3). With b_i the
difference of sample i from its finer solution,

    mean square = ( sum_top b_i^2 + N_rest mean_rest b_i^2 ) / N,

and the mean of b likewise. A finer solution starts from the steps that each sample was given: one that needed 64 gets 128.
Samples that got Runge-Kutta steps of their own have been solved at two tolerances already. Their estimate comes from that
difference. It stands in for b, without a sign. So does the estimate of any sample that has no finer solution.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.likelihood.evaluation import DataSet, Estimator, Values
from score_sde.solvers.base import SolverError
from score_sde.solvers.transport import is_adaptive
from score_sde.tensors import derive_seed


@dataclass(frozen=True)
class SolverAudit:
    """The solver's error over all samples, in bits/dim, from ``audited`` of them that were solved more finely.

    ``error`` is its root mean square, ``bias`` its mean, and ``bias_stderr`` the standard error of that mean over the choice of
    the samples.
    """

    error: float
    bias: float
    bias_stderr: float
    audited: int


class Variances(NamedTuple):
    """Variances of a single value over the draw of its probes and over that of its dequantization; None where unknown."""

    probe: float | None
    dequantization: float | None


class StandardErrors(NamedTuple):
    """The parts of the standard error of a mean, whose squares add up to its square; None where unknown."""

    data: float | None
    dequantization: float | None
    probe: float | None


@dataclass(frozen=True)
class Audit:
    """Where the error comes from: the variances of a single value, and the solver's error, None where it was not measured."""

    variances: Variances
    solver: SolverAudit | None

    def standard_errors(self, whole: float, count: int) -> StandardErrors:
        """The parts of ``whole``, the standard error of the mean of ``count`` values."""
        probe, dequantization = (None if v is None else math.sqrt(v / count) for v in self.variances)
        if probe is None or dequantization is None or math.isnan(whole):
            return StandardErrors(None, dequantization, probe)
        return StandardErrors(math.sqrt(max(0.0, whole**2 - (probe**2 + dequantization**2))), dequantization, probe)


def spread(count: int, wanted: int, *, offset: float) -> Tensor:
    """Places of ``wanted`` samples, or of all, evenly spread over ``count``: data is often sorted."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted, dtype=torch.float64) + offset) * (count / max(wanted, 1))).long()


def audit_draws(estimator: Estimator, found: Values, data: DataSet, wanted: int) -> Variances:
    """How far the values ``found`` scatter over their draws, from at most ``wanted`` samples; 0 for none."""
    probe = None if found.probe_variance is None else found.probe_variance.mean().item()
    random = estimator.dequantization is not None or estimator.truncation
    dequantization = None if random else 0.0
    places, other = spread(len(data), wanted, offset=0.5), derive_seed(estimator.seed, "audit")

    def half_square(changed: Estimator) -> float:
        again = data.at(places, changed, doing="audit").bits
        return (again - found.bits[places]).square().mean().item() / 2

    if wanted and probe is None:
        probe = half_square(replace(estimator, probe_seed=other))
    if wanted and random:
        dequantization = half_square(replace(estimator, seed=other))
    return Variances(probe, dequantization)


def audit_solver(estimator: Estimator, found: Values, data: DataSet, wanted: int) -> SolverAudit:
    """What the solver's error in ``found`` is, from at most ``wanted`` samples."""
    count = len(found.bits)
    known = torch.zeros(count, dtype=torch.bool) if found.steps is None else found.steps == 0
    candidates = known.logical_not().nonzero()[:, 0]
    top, rest = candidates[:0], candidates
    if found.error is not None and len(candidates) > wanted:
        order = found.error[candidates].argsort(descending=True, stable=True)
        top, rest = candidates[order[: wanted // 2]], candidates[order[wanted // 2 :].sort().values]
    sampled = rest[spread(len(rest), wanted - len(top), offset=0.5)]
    error, difference = _differences(estimator, found, data, torch.cat([top, sampled]))
    weight = len(rest) / max(1, len(sampled))
    weights = torch.cat([torch.ones(len(top)), torch.full((len(sampled),), weight)]).double()
    square = (weights * error.square()).sum()
    if found.error is not None:
        square = square + found.error[known].square().sum()
    among = difference[len(top) :]
    unsure = among.var() * weight * (len(rest) - len(sampled)) if len(among) > 1 else torch.zeros(())
    bias = (weights * difference).sum() / count
    return SolverAudit((square / count).sqrt().item(), bias.item(), unsure.sqrt().item() / count, len(difference))


def _differences(estimator: Estimator, found: Values, data: DataSet, places: Tensor) -> tuple[Tensor, Tensor]:
    """Of the samples at ``places``: the size of the error, and the error with its sign, 0 where that is not known."""
    solver, finer = estimator.solver, torch.full((len(places),), torch.nan, dtype=torch.float64)
    finely = lambda places, solver: data.at(places, replace(estimator, solver=solver), doing="audit", partial=True).bits
    if found.steps is not None and is_adaptive(solver):
        for steps in found.steps[places].unique().long().tolist():
            those = (found.steps[places] == steps).nonzero()[:, 0]
            with suppress(SolverError):  # none of them
                finer[those] = finely(places[those], solver.with_steps(steps).finer())
    elif len(places):
        finer = finely(places, solver.finer())
    difference = found.bits[places] - finer
    missing = difference.isfinite().logical_not()
    if found.error is None:
        return difference.abs(), difference
    return torch.where(missing, found.error[places], difference.abs()), torch.where(missing, 0.0, difference)
