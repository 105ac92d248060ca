"""An accuracy instead of a tolerance: the cheapest solver that reaches it on a pilot batch, and probes until it is reached.

The pilot's samples are solved finely, by twice the steps again and again until nothing changes any more; then ever more steps
are tried until the root mean square error is small enough. All solve for the same points and probes, so that only the solvers
differ.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.divergence import ExactDivergence
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import Estimator, Values
from score_sde.solvers.base import SolverError
from score_sde.tensors import derive_seed

STEPS = (12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256)
FINEST = 1536
"""Steps beyond which a pilot's solution is not looked for."""


def choose_solver(estimator: Estimator, pilot: Callable[[Estimator], Values], target: float) -> Estimator:
    """The estimator with the cheapest ``DualWeighted`` whose error on the pilot is below ``target``, in bits/dim.

    It repeats single samples whose residual is large beside the target.

    Args:
        pilot: an estimator's values for the samples of the pilot.

    Raises:
        SolverError: no solver reaches the target.
    """
    solve = lambda solver: pilot(dataclasses.replace(estimator, solver=solver)).bits
    tolerance = 2.5 * target * math.log(2)  # the error is about a quarter of the residual's part
    fine = DualWeighted(steps=48, tolerance=tolerance / 8, doublings=2)
    exact, change = solve(fine), math.inf
    while change > target / 3:
        before, fine = change, dataclasses.replace(fine.finer(), tolerance=fine.tolerance)
        better = solve(fine)
        exact, change = better, _rms(better - exact)
        if change > before or fine.steps >= FINEST:
            raise SolverError(
                f"an error of {target:g} bits/dim is out of reach: with {fine.steps} steps instead of half as many the pilot "
                f"still changes by {change:.2g}; ask for a larger target_error, or check the model"
            )
    for steps in STEPS:
        solver = DualWeighted(steps=steps, tolerance=tolerance)
        if _rms(solve(solver) - exact) < 0.8 * target:  # the pilot is small: some room for the others
            return dataclasses.replace(estimator, solver=solver)
    return dataclasses.replace(estimator, solver=fine)


def enough_probes(
    estimator: Estimator, found: Values, variance: float, again: Callable[[Estimator], Values], target: float
) -> tuple[Estimator, Values, float]:
    """Average ``found`` with passes of new probes until their standard error of the mean is below ``target``.

    Where the exact divergence takes less than these passes would, it takes their place.

    Args:
        variance: of a single value of ``found`` by its probes.
        again: an estimator's values for the same samples.

    Returns:
        The estimator that was used, the averaged values, and the variance that remains.
    """
    passes, allowed = [found], len(found.bits) * target**2
    products = float(found.vjps.mean() / found.nfe.mean())
    if (variance / allowed - 1) * (1 + products) > 1 + estimator.data.dim:
        exact = dataclasses.replace(estimator, divergence=ExactDivergence())
        return exact, again(exact), 0.0
    while variance > allowed:
        passes.append(again(dataclasses.replace(estimator, probe_seed=derive_seed(estimator.seed, "probes", len(passes)))))
        bits = torch.stack([one.bits for one in passes])
        spread = bits.var(0) / len(passes)
        nfe, vjps = (sum(getattr(one, name) for one in passes) for name in ("nfe", "vjps"))
        found, variance = Values(bits.mean(0), spread, nfe, vjps), spread.mean().item()
    return estimator, found, variance


def _rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()
