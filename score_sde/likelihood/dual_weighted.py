r"""log p along an approximate trajectory, its errors weighted by the score: the dual-weighted residual.

With r = sqrt(alpha^2 + sigma^2), tan(theta) = sigma / alpha, u = log(sigma / alpha) and z = x / r, the probability-flow ODE of
any linear SDE is

    dz/dtheta = -F,   F = tan(theta) (z + r score),   dtheta = sin(theta) cos(theta) du.

F is what a network with v-prediction predicts, and vanishes for standard normal data. With h = sin(theta)^2 (D + r^2 div score)
the log-density of z changes by -div(dz/du) du = h du, the Gaussian part of it in closed form.

Let z(u) be *any* path, not only a solution. Since the density itself obeys the continuity equation,

    log p(z_0) = log p(z_N) - \int h du - \int (dz/du - v) . g du,   v = -sin(theta) cos(theta) F,   g = grad log p = r score.

The last integral takes back, to first order, what the path misses of the solution. It is the residual of the path weighted by
the adjoint of log p (Becker and Rannacher 2001, Section 2). The adjoint of log p is the score, which the network gives anyway.
What is left is the product of the path's error with that of the score, and with itself.

So the path may be crude. It is that of a predictor-corrector method in u with N equal steps: a polynomial through the last
three F predicts the next state; the corrector, with the F found there, takes the place from which the next step starts (one
evaluation a node). Afterwards cubic splines through the nodes give \int h du and, interval by interval, the residual
rho_i = z_{i+1} - z_i - \int v du, which is weighted by the mean of g at its ends. Every weight of these formulas depends on the
nodes alone, and is computed once in float64.

Three things are known to be wrong in this. Within an interval the score is not the mean of its ends. The spline is not h. What
is of second order in the residual is left out. All three can be measured without another evaluation:

    A = sum_i |rho_i . (g_{i+1} - g_i)| / 2        B = |\int h du by all nodes - \int h du by every second node|
    C = ( sum_i |rho_i . (g_i + g_{i+1})| / 2 )^2 / D

A is the change of the residual's part if the score were taken at one end of every interval. B is larger than the error of the
finer spline, by 2^4 where h is smooth. C stands out far from the data, where large residuals cancel. The estimated error of
log p is sqrt((A / 4)^2 + (B / 8)^2 + (C / 64)^2). The three factors are empirical: on mixtures of many kinds the true error is
then within twice this figure for nearly all samples (``tests/benchmarks/likelihood_honesty.py``).

A sample whose estimated error is too large is solved again with twice the steps. Some doublings may not help, or the path may
not stay finite. The sample then gets Runge-Kutta steps of its own, with smaller and smaller tolerances until two solutions
agree. Such samples lie between separated modes, or far away from the data. What is smooth for data changes there within a small
part of a step. A sample that even this does not solve has no value: it is NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor

from score_sde.inputs import whole
from score_sde.solvers.base import Observer, SolverError
from score_sde.solvers.interpolation import lagrange_weights
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.solvers.time_grids import check_grid, time_grid
from score_sde.solvers.transport import Flow, Transported
from score_sde.tensors import sum_event, total

ORDER = 3
"""Nodes through which predictor and corrector interpolate."""

RUNGE_KUTTA = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)}
"""Tolerances, relative and absolute, that a sample is given one after the other: as small as the precision allows."""


@dataclass(frozen=True)
class DualWeighted:
    """log p by a multistep path and its dual-weighted residual: ``steps + 1`` evaluations, the same result in any batch.

    Args:
        steps: number of steps, at least 1.
        tolerance: a sample whose estimated error is above this, in nats per dimension, is solved again with twice the steps.
            Over many samples, the root mean square error is about a quarter of it or less.
        doublings: how often the steps are doubled before a sample gets Runge-Kutta steps of its own. With 0 no sample is
            solved again, whatever its error.
    """

    steps: int = 32
    tolerance: float = 0.01
    doublings: int = 2

    def __post_init__(self):
        check_grid("log_snr", self.steps)
        whole("doublings", self.doublings, 0)
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, got {self.tolerance}")

    def finer(self) -> Self:
        """Twice the steps and a quarter of the tolerance: what shows the error of this one."""
        return replace(self, steps=2 * self.steps, tolerance=self.tolerance / 4)

    def with_steps(self, steps: int) -> Self:
        """The same path with another number of steps."""
        return replace(self, steps=steps)

    def describe(self) -> str:
        """The method and its steps, in words."""
        again = f", doubled where the estimated error is above {self.tolerance:g} nats/dim" if self.doublings else ""
        return f"multistep path of {self.steps} steps in log-SNR with dual-weighted residual{again}"

    def transport(self, flow: Flow, x: Tensor, t_from: float, t_to: float, *, observe: Observer | None = None) -> Transported:
        """Carry ``x`` ``(B, *D)`` up to a later time. A sample that cannot be solved is NaN.

        Raises:
            SolverError: no sample could be solved.
            TypeError: the SDE is not linear.
            ValueError: ``t_to`` is not later: the error of log p would be weighted at the wrong end.
        """
        if not t_from < t_to:
            raise ValueError(f"DualWeighted goes from data to noise only: got t from {t_from} to {t_to}")
        ends = t_from, t_to
        found = self._along_path(flow, x, ends, observe)
        for doubling in range(1, self.doublings + 1):
            rows = self._too_crude(found, x)
            if not len(rows):
                return found
            finer = self.with_steps(2**doubling * self.steps)
            found = found.with_rows(rows, finer._along_path(flow.of(rows), x[rows], ends, observe))
        if len(rows := self._too_crude(found, x)):
            try:
                found = found.with_rows(rows, self._by_runge_kutta(flow.of(rows), x[rows], ends, observe))
            except SolverError:
                if len(rows) == len(x):
                    raise
                found = found.with_rows(rows, found.of(rows).lost())
        return found

    def _too_crude(self, found: Transported, x: Tensor) -> Tensor:
        """Places of the samples to be solved again, ``(n,)``."""
        error = cast(Tensor, found.error)  # whatever is solved here has one
        enough = error <= self.tolerance * x[0].numel()
        kept = enough if self.doublings else enough | error.isfinite()
        return kept.logical_not().nonzero()[:, 0]  # what is not finite as well

    def _by_runge_kutta(self, flow: Flow, x: Tensor, ends: tuple[float, float], observe: Observer | None) -> Transported:
        """The same by Runge-Kutta steps for each sample, at a tenth of the tolerance again and again until two solutions agree.

        A tenth of the tolerance is a tenth of the error or less: a third of the difference is on the safe side.
        """
        loosest, *tighter = RUNGE_KUTTA[torch.promote_types(x.dtype, torch.float32)]
        rows = torch.arange(len(x), device=x.device)

        def solved(tolerance: float) -> Transported:
            solver = ProbabilityFlow(method="rk45", rtol=tolerance, atol=tolerance)
            return solver.transport(flow.of(rows), x[rows], *ends, observe=observe, partial=True)

        log_p = lambda end: (flow.sde.prior_log_prob(end.state) + end.changes.mean(0)).detach()
        first = solved(loosest)
        found = Transported(first.state, first.changes, first.changes.new_full((len(x),), math.inf), torch.zeros_like(rows))
        for tolerance in tighter:
            try:
                finer = solved(tolerance)
            except SolverError:  # none of these; others may have been solved before
                if len(rows) == len(x):
                    raise
                break
            value = log_p(finer)
            error = (value - log_p(found.of(rows))).abs() / 3
            found = found.with_rows(rows, Transported(finer.state, finer.changes, error, torch.zeros_like(rows)))
            rounding = 1000 * torch.finfo(value.dtype).eps * value.abs()  # beyond which no step can help
            rows = rows[~(error <= self.tolerance * x[0].numel() + rounding)]
            if not len(rows):
                return found
        if len(rows) == len(x):
            change = 3 * cast(Tensor, found.error).amax() / x[0].numel()
            raise SolverError(
                f"dual-weighted path: its steps do not solve this, and Runge-Kutta steps at a tolerance of {tighter[-1]:g} "
                f"change log p by {change:.2g} nats/dim: use a larger tolerance, or float64"
            )
        return found.with_rows(rows, found.of(rows).lost())

    def _along_path(self, flow: Flow, x: Tensor, ends: tuple[float, float], observe: Observer | None) -> Transported:
        sde = flow.sde
        sde.require_linear()
        times = time_grid("log_snr", sde, *ends, self.steps)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        scale, tangent, slope = (alpha**2 + sigma**2).sqrt(), sde.noise_level(times), alpha * sigma / (alpha**2 + sigma**2)
        weights, dim = _Weights(tangent.log().numpy()), x[0].numel()
        corrected = z = x / scale[0]
        states, forces, gradients, densities = [], [], [], []
        for i, t in enumerate(times):
            score, traces = flow(scale[i] * z, t)
            states.append(z)
            gradients.append(scale[i] * score.to(z.dtype))
            forces.append(tangent[i] * (z + gradients[i]))
            densities.append(tangent[i] * slope[i] * (dim + scale[i] ** 2 * traces))
            if observe:
                observe(float(t), z)
            if i:
                corrected = corrected - weights.step(forces, i, new=True)
            if i < self.steps:
                z = corrected - weights.step(forces, i + 1, new=False)
        velocities = torch.stack([-s * force for s, force in zip(slope, forces, strict=True)])
        missed, size, spread = (x.new_zeros(len(x)) for _ in range(3))
        spline = torch.as_tensor(weights.spline, dtype=x.dtype, device=x.device)
        for i in range(self.steps):
            residual = states[i + 1] - states[i] - torch.tensordot(spline[i], velocities, 1)
            part = sum_event(residual * (gradients[i] + gradients[i + 1]) / 2)
            missed, size = missed + part, size + part.detach().abs()
            spread = spread + sum_event(residual * (gradients[i + 1] - gradients[i]) / 2).abs()
        gained = _weighted(weights.spline.sum(0), densities)
        rest = gained - _weighted(weights.every_second, densities)
        parts = spread.detach() / 4, rest.detach().mean(0).to(spread) / 8, size**2 / (64 * dim)
        error = torch.stack(parts).square().sum(0).sqrt()
        changes = -gained - missed - dim * float((scale[0] / scale[-1]).log())
        error = torch.where(changes.isfinite().all(0), error, math.nan)
        return Transported(scale[-1] * z, changes, error, torch.full_like(error, self.steps, dtype=torch.long))


def _weighted(weights: np.ndarray, values: Sequence[Tensor]) -> Tensor:
    return total(float(weight) * value for weight, value in zip(weights, values, strict=True) if weight)


class _Weights:
    """Weights of the formulas on nodes ``u`` ``(N + 1,)``.

    ``spline`` ``(N, N + 1)`` integrates, over each interval, the cubic spline through values at the nodes; ``every_second``
    ``(N + 1,)`` integrates, over all of them, that through the values at every second node and the last.
    """

    def __init__(self, u: np.ndarray):
        self.u = u
        self.spline = _spline_integrals(u)
        self.every_second, half = np.zeros(len(u)), sorted({*range(0, len(u), 2), len(u) - 1})
        self.every_second[half] = _spline_integrals(u[half]).sum(0)

    def step(self, forces: list[Tensor], i: int, *, new: bool) -> Tensor:
        """Integral of F dtheta over interval i, which ends at node i: through the last nodes before i, or ``new``, with it."""
        last = i + 1 if new else i
        first = max(0, last - ORDER)
        weights = lagrange_weights(self.u[first:last].tolist(), self.u[i - 1], self.u[i], lambda u: 1 / (2 * np.cosh(u)))
        return _weighted(weights, forces[first:last])


def _spline_integrals(u: np.ndarray) -> np.ndarray:
    """Weights that integrate, over each interval between nodes ``u``, the cubic spline through values at them."""
    if len(u) < 3:
        return np.full((1, 2), np.diff(u) / 2)
    from scipy.interpolate import CubicSpline  # here: it takes long to import

    return np.diff(CubicSpline(u, np.eye(len(u))).antiderivative()(u), axis=0)
