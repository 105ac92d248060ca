"""An accuracy instead of a tolerance: the cheapest solver that reaches it on a pilot batch, and probes until it is reached.

*The solver.* The pilot's samples are solved with twice the steps again and again, until nothing changes any more. The last
solution is taken for exact. Then solvers are tried, each with more steps than the one before. The cheapest is taken whose root
mean square error on the pilot is small enough. All of them solve for the same points and probes, so that only the solvers
differ. A solver of few steps is not cheap where it has to solve many samples again.

*The probes.* The standard error of the mean by the probes falls with the root of their number. Values of m probes and of k new
ones are averaged by the shares m / (m + k) and k / (m + k).
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.divergence import ExactDivergence, takes_probes
from score_sde.likelihood.audit import SolverAudit, audit_solver, spread
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import DataSet, Estimator, Values
from score_sde.solvers.base import SolverError
from score_sde.tensors import derive_seed

STEPS = (12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256)
FINEST = 1536
"""Steps beyond which a solution is not looked for."""


def solve_within(estimator: Estimator, data: DataSet, target: float, wanted: int) -> tuple[Estimator, Values, SolverAudit]:
    """Values of all samples by a solver whose audited error is at most ``target``, in bits/dim.

    A pilot chooses the solver, which is made finer until the audit of all samples agrees.

    Args:
        wanted: number of samples to be audited.

    Returns:
        The estimator with that solver, its values, and the audit.

    Raises:
        SolverError: no solver reaches the target.
    """
    pilot = spread(len(data), min(16, max(8, len(data) // 16)), offset=0.25)

    def tried(solver: DualWeighted) -> Values:
        return data.at(pilot, dataclasses.replace(estimator, solver=solver), doing=f"pilot, {solver.steps} steps")

    solver = choose_solver(tried, target)
    estimator = dataclasses.replace(estimator, solver=solver)
    found = data.all(estimator)
    audit = audit_solver(estimator, found, data, wanted)
    while not audit.error <= target:
        if solver.steps >= FINEST:
            raise SolverError(
                f"an error of {target:g} bits/dim is out of reach: with {solver.steps} steps the audit still finds "
                f"{audit.error:.2g} bits/dim a sample; ask for a larger target_error, or give a solver of your own"
            )
        solver = solver.finer()
        estimator = dataclasses.replace(estimator, solver=solver)
        found = data.all(estimator, doing=f"likelihood, {solver.steps} steps", folder=f"steps_{solver.steps}")
        audit = audit_solver(estimator, found, data, wanted)
    return estimator, found, audit


def choose_solver(pilot: Callable[[DualWeighted], Values], target: float) -> DualWeighted:
    """The cheapest ``DualWeighted`` whose error on the pilot is below ``target``, in bits/dim.

    It repeats single samples whose residual is large beside the target.

    Args:
        pilot: a solver's values for the samples of the pilot.

    Raises:
        SolverError: no solver reaches the target.
    """

    def solve(solver: DualWeighted) -> Tensor:
        try:
            return pilot(solver).bits
        except SolverError as error:
            raise SolverError(f"an error of {target:g} bits/dim is out of reach: with {solver.steps} steps, {error}") from error

    tolerance = 4 * target * math.log(2)  # of a single sample, whose estimate is on the safe side
    fine = DualWeighted(steps=48, tolerance=tolerance / 4)
    exact, change, stalled = solve(fine), math.inf, 0
    while change > target / 2:
        before, fine = change, dataclasses.replace(fine.finer(), tolerance=fine.tolerance)
        better = solve(fine)
        exact, change = better, _rms(better - exact)
        stalled = stalled + 1 if change > before / 2 else 0
        if change > target / 2 and (stalled == 2 or fine.steps >= FINEST):
            raise SolverError(
                f"an error of {target:g} bits/dim is out of reach: with {fine.steps} steps instead of half as many the pilot "
                f"still changes by {change:.2g}; ask for a larger target_error, or check the model"
            )
    best, cost = fine, math.inf
    for steps in STEPS:
        if steps + 1 >= cost:
            break
        solver = DualWeighted(steps=steps, tolerance=tolerance)
        found = pilot(solver)
        reached = _rms(found.bits - exact) < 0.7 * target  # the pilot is small: some room for the others
        if reached and found.nfe.mean().item() < cost:
            best, cost = solver, found.nfe.mean().item()
    return best


def enough_probes(
    estimator: Estimator, found: Values, variance: float, again: Callable[[Estimator], Values], target: float
) -> tuple[Estimator, Values, float]:
    """Average ``found`` with more probes until their standard error of the mean is below ``target``.

    Where the exact divergence takes no more products, it takes their place.

    Args:
        variance: of a single value of ``found`` by its probes.
        again: an estimator's values for the same samples.

    Returns:
        An estimator with all the probes that were used, the averaged values, and the variance that remains.
    """
    divergence, allowed = estimator.divergence, len(found.bits) * target**2
    while variance > allowed:
        if not takes_probes(divergence):
            raise SolverError(f"{divergence} cannot be given more probes to reach an error of {target:g} bits/dim")
        used = divergence.probes
        more = max(4, math.ceil(1.1 * used * (variance / allowed - 1)))
        if used + more > estimator.data.dim:
            exact = dataclasses.replace(estimator, divergence=ExactDivergence())
            return exact, again(exact), 0.0
        fresh = divergence.with_probes(more)
        seed = derive_seed(estimator.seed, "probes", used)
        new = again(dataclasses.replace(estimator, divergence=fresh, probe_seed=seed))
        share = more / (used + more)
        known, added = (
            torch.full_like(values.bits, variance) if values.probe_variance is None else values.probe_variance
            for values in (found, new)
        )
        spread = (1 - share) ** 2 * known + share**2 * added
        bits, nfe, vjps = (1 - share) * found.bits + share * new.bits, found.nfe + new.nfe, found.vjps + new.vjps
        error = steps = None
        if found.error is not None and new.error is not None:
            error = (1 - share) * found.error + share * new.error
        if found.steps is not None and new.steps is not None:
            steps = torch.minimum(found.steps, new.steps)
        found = Values(bits, nfe, vjps, spread, error, steps)
        divergence, variance = divergence.with_probes(used + more), spread.mean().item()
    return dataclasses.replace(estimator, divergence=divergence), found, variance


def _rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()
