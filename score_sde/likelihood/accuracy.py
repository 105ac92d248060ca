"""An accuracy instead of a tolerance: the cheapest solver that reaches it on a pilot batch, and probes until it is reached.

The pilot's samples are solved finely, by twice the steps (or a tenth of the tolerance) again and again until nothing changes
any more; then ever costlier solvers are tried until the root mean square error is small enough. All solve for the same points
and probes, so that only the solvers differ.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import Estimator, Values
from score_sde.solvers.base import SolverError
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.tensors import derive_seed

STEPS = (12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256)
TOLERANCES = tuple(10 ** -(k / 2) for k in range(4, 15))
FINEST = 768
"""Steps beyond which a pilot's solution is not looked for."""


def choose_solver(estimator: Estimator, pilot: Callable[[Estimator], Values], target: float) -> Estimator:
    """The estimator with the cheapest solver whose error on the pilot is below ``target``, in bits/dim.

    Where the SDE is linear that is a ``DualWeighted``, which repeats single samples whose residual is large beside the target;
    else ``ProbabilityFlow`` with steps for each sample.

    Args:
        pilot: an estimator's values for the samples of the pilot.

    Raises:
        SolverError: no solver reaches the target.
    """
    solve = lambda solver: pilot(dataclasses.replace(estimator, solver=solver)).bits
    try:
        estimator.model.sde.require_linear()
    except TypeError:
        candidates = [ProbabilityFlow(method="rk45", rtol=tolerance, atol=tolerance) for tolerance in TOLERANCES]
        finest = ProbabilityFlow(method="rk45", rtol=1e-9, atol=1e-9)
        return dataclasses.replace(estimator, solver=_cheapest(candidates, solve, solve(finest), target))
    tolerance = 10 * target * math.log(2)  # the error is rarely more than a tenth of the residual's part
    fine = DualWeighted(steps=48, tolerance=tolerance / 8)
    exact, change = solve(fine), math.inf
    while change > target / 3:
        fine = dataclasses.replace(fine.finer(), tolerance=fine.tolerance)
        if fine.steps > FINEST:
            raise SolverError(
                f"an error of {target:g} bits/dim is out of reach: from {FINEST // 2} to {FINEST} steps the pilot still "
                f"changes by {change:.2g}; ask for a larger target_error, or check the model"
            )
        better = solve(fine)
        exact, change = better, _rms(better - exact)
    candidates = [DualWeighted(steps=steps, tolerance=tolerance) for steps in STEPS]
    return dataclasses.replace(estimator, solver=_cheapest(candidates, solve, exact, target))


def enough_probes(
    estimator: Estimator,
    found: Values,
    variance: float,
    again: Callable[[Estimator], Values],
    target: float,
    max_passes: int,
) -> tuple[Values, float]:
    """Average ``found`` with passes of new probes until their standard error of the mean is below ``target``.

    ``variance`` is that of a single value by its probes. The averaged values, and the variance that remains.
    """
    passes, allowed = [found], len(found.bits) * target**2
    if variance > max_passes * allowed:
        raise SolverError(
            f"the probes' standard error would need {variance / allowed:.0f} passes over the data to fall below {target:g} "
            "bits/dim: use more probes, divergence=exact, or a larger target_error"
        )
    while variance > allowed:
        passes.append(again(dataclasses.replace(estimator, probe_seed=derive_seed(estimator.seed, "probes", len(passes)))))
        bits = torch.stack([one.bits for one in passes])
        spread = bits.var(0) / len(passes)
        nfe, vjps = (sum(getattr(one, name) for one in passes) for name in ("nfe", "vjps"))
        found, variance = Values(bits.mean(0), spread, nfe, vjps), spread.mean().item()
    return found, variance


def _cheapest(candidates: list, solve: Callable, exact: Tensor, target: float):
    for solver in candidates:
        if _rms(solve(solver) - exact) < 0.8 * target:  # the pilot is small: some room for the others
            return solver
    raise SolverError(
        f"an error of {target:g} bits/dim is out of reach on the pilot: ask for a larger target_error, or check the model"
    )


def _rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()
