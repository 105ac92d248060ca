r"""log p along an approximate trajectory, its errors weighted by the score: the dual-weighted residual.

With r = sqrt(alpha^2 + sigma^2), tan(theta) = sigma / alpha, u = log(sigma / alpha) and z = x / r, the probability-flow ODE of
any linear SDE is

    dz/dtheta = -F,   F = tan(theta) (z + r score),   dtheta = sin(theta) cos(theta) du.

F is what a network with v-prediction predicts, and vanishes for standard normal data. With h = sin(theta)^2 (D + r^2 div score)
the log-density of z changes by -div(dz/du) du = h du, the Gaussian part of it in closed form.

Let z(u) be *any* path, not only a solution. Since the density itself obeys the continuity equation,

    log p(z_0) = log p(z_N) - \int h du - \int (dz/du - v) . g du,   v = -sin(theta) cos(theta) F,   g = grad log p = r score.

The last integral takes back, to first order, what the path misses of the solution: it is the residual of the path weighted by
the adjoint of log p (Becker and Rannacher 2001, Section 2), and the adjoint of log p is the score, which the network gives
anyway. What is left is the product of the path's error with that of the score, and with itself. So the size of this integral
also tells where the path is too crude: samples for which it exceeds a tolerance are solved again with twice the steps. They are
few, those near a boundary between basins of the data, which no steps chosen for the others would suit.

So the path may be crude. It is that of a predictor-corrector method in u with N equal steps: a polynomial through the last
three F predicts the next state; the corrector, with the F found there, takes the place from which the next step starts (one
evaluation a node). Afterwards cubic splines through the nodes give \int h du and, interval by interval, the residual
z_{i+1} - z_i - \int v du, which is weighted by the mean of g at its ends. Every weight of these formulas depends on the nodes
alone, and is computed once in float64.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from score_sde.likelihood.flow import Flow
from score_sde.solvers.base import FiniteGuard
from score_sde.solvers.interpolation import lagrange_weights
from score_sde.solvers.time_grids import check_grid, time_grid
from score_sde.tensors import sum_event

ORDER = 3
"""Nodes through which predictor and corrector interpolate."""


@dataclass(frozen=True)
class DualWeighted:
    """log p by a multistep path and its dual-weighted residual: ``steps + 1`` evaluations, the same result in any batch.

    Args:
        steps: number of steps, at least 1.
        tolerance: nats per dimension that the residual may contribute to a sample's log p before it is solved again with twice
            the steps. Over many samples, the root mean square error is about a quarter of it or less.
        doublings: how often the steps may be doubled for a sample.
    """

    steps: int = 32
    tolerance: float = 0.01
    doublings: int = 5

    def __post_init__(self):
        check_grid("log_snr", self.steps)
        if not self.tolerance > 0 or self.doublings < 0:
            raise ValueError(
                f"tolerance must be positive and doublings not negative, got {self.tolerance} and {self.doublings}"
            )

    def finer(self) -> Self:
        """Twice the steps and an eighth of the tolerance: what shows the error of this one."""
        return dataclasses.replace(self, steps=2 * self.steps, tolerance=self.tolerance / 8)

    def describe(self) -> str:
        """The method and its steps, in words."""
        again = f", doubled where the residual is above {self.tolerance:g} nats/dim" if self.doublings else ""
        return f"multistep path of {self.steps} steps in log-SNR with dual-weighted residual{again}"

    def transport(self, flow: Flow, x: Tensor, t_min: float, observe: Callable[[float, Tensor], None]) -> tuple[Tensor, Tensor]:
        """Carry ``x`` ``(B, *D)`` from ``t_min`` to T: the state there, and log p at t_min minus log p there, ``(k, B)``.

        Raises:
            SolverError: the state stopped being finite.
            TypeError: the SDE is not linear.
        """
        latent, changes, missed = self._along_path(flow, x, t_min, observe)
        rows = (missed.abs() > self.tolerance * x[0].numel()).nonzero()[:, 0] if self.doublings else ()
        if len(rows):
            finer = dataclasses.replace(self, steps=2 * self.steps, doublings=self.doublings - 1)
            again, changed = finer.transport(flow.of(rows), x[rows], t_min, observe)
            latent, changes = latent.index_copy(0, rows, again), changes.index_copy(1, rows, changed)
        return latent, changes

    def _along_path(self, flow: Flow, x: Tensor, t_min: float, observe) -> tuple[Tensor, Tensor, Tensor]:
        """The state at T, log p at t_min minus log p there, and the residual's part in it with the other sign, ``(B,)``."""
        sde = flow.sde
        sde.require_linear()
        times = time_grid("log_snr", sde, t_min, sde.T, self.steps)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        scale, tangent, slope = (alpha**2 + sigma**2).sqrt(), sigma / alpha, alpha * sigma / (alpha**2 + sigma**2)
        weights = _Weights(tangent.log().numpy())
        guard, dim = FiniteGuard("dual-weighted path", unit="evaluation"), x[0].numel()
        corrected = z = x / scale[0]
        states, forces, gradients, densities = [], [], [], []
        for i, t in enumerate(times):
            score, traces = flow(scale[i] * z, t)
            states.append(z)
            gradients.append(scale[i] * score)
            forces.append(tangent[i] * (z + gradients[i]))
            densities.append(tangent[i] * slope[i] * (dim + scale[i] ** 2 * traces))
            guard.watch(t, sum_event(forces[i]) + densities[i])
            observe(float(t), z)
            if i:
                corrected = corrected - weights.step(forces, i, new=True)
            if i < self.steps:
                z = corrected - weights.step(forces, i + 1, new=False)
        guard.check()
        velocities = torch.stack([-s * force for s, force in zip(slope, forces, strict=True)])
        missed, spline = x.new_zeros(len(x)), torch.as_tensor(weights.spline, dtype=x.dtype, device=x.device)
        for i in range(self.steps):
            residual = states[i + 1] - states[i] - torch.tensordot(spline[i], velocities, 1)
            missed = missed + sum_event(residual * (gradients[i] + gradients[i + 1]) / 2)
        gained = sum(weight * density for weight, density in zip(weights.spline.sum(0), densities, strict=True))
        return scale[-1] * z, -gained - missed - dim * float((scale[0] / scale[-1]).log()), missed


class _Weights:
    """Weights of the formulas on nodes ``u`` ``(N + 1,)``.

    ``spline`` ``(N, N + 1)`` integrates, over each interval, the cubic spline through values at the nodes.
    """

    def __init__(self, u: np.ndarray):
        self.u = u
        spline = CubicSpline(u, np.eye(len(u))).antiderivative() if len(u) > 2 else None
        self.spline = np.full((1, 2), np.diff(u) / 2) if spline is None else np.diff(spline(u), axis=0)

    def step(self, forces: list[Tensor], i: int, *, new: bool) -> Tensor:
        """Integral of F dtheta over interval i, which ends at node i: through the last nodes before i, or ``new``, with it."""
        last = i + 1 if new else i
        first = max(0, last - ORDER)
        weights = lagrange_weights(self.u[first:last], self.u[i - 1], self.u[i], lambda u: 1 / (2 * np.cosh(u)))
        return sum(float(w) * force for w, force in zip(weights, forces[first:last], strict=True))
