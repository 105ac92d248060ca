r"""alpha and sigma of an SDE that is given by f(t) and g(t).

With L(t) the integral of f from 0 to t, the marginal's moment equations are solved by

    log alpha(t) = L(t),    sigma(t)^2 = sigma_0^2 e^{2 L(t)} + \int_0^t g(u)^2 e^{2 (L(t) - L(u))} du.

[0, T] is cut into equal panels, the first of them further and geometrically, since g is often steep at 0. Each integral
is a Gauss-Legendre rule on the panels before t, tabulated once in float64, plus one rule from the start of t's own panel
to t.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from score_sde.sdes.memory import remembered

_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
_EQUAL, _GEOMETRIC = 100, 40


class Process(Protocol):
    """What is asked of an SDE here."""

    @property
    def T(self) -> float: ...

    @property
    def sigma_0(self) -> float: ...

    def require_linear(self) -> None: ...

    def drift_coefficient(self, t: Tensor) -> Tensor: ...

    def diffusion(self, t: Tensor) -> Tensor: ...


def linear_marginal(sde: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """log alpha(t) and sigma(t)^2 of a linear ``sde`` from its ``drift`` and ``diffusion``, in the shape of ``t``."""
    sde.require_linear()
    if t.ndim == 1 and t.stride(0) == 0 and len(t) > 1:  # one time, expanded to a batch: integrate once
        log_alpha, variance = linear_marginal(sde, t[:1])
        return log_alpha.expand(t.shape), variance.expand(t.shape)
    edges, log_alphas, variances = _table_on(sde, t.dtype, t.device)
    flat = t.reshape(-1)
    panel = (torch.searchsorted(edges, flat.detach().contiguous(), right=True) - 1).clamp(0, len(edges) - 2)
    log_alpha, variance = _advance(sde, log_alphas[panel], variances[panel], edges[panel], flat)
    return log_alpha.reshape(t.shape), variance.reshape(t.shape)


@remembered(64)
def _table_on(sde: Process, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(values.to(device, dtype) for values in _table(sde))


@remembered(64)
def _table(sde: Process) -> tuple[Tensor, Tensor, Tensor]:
    """Panel edges, and log alpha and sigma^2 at each of them, in float64."""
    equal = torch.linspace(0, sde.T, _EQUAL + 1, dtype=torch.float64, device="cpu")
    geometric = equal[1] * torch.logspace(-12, 0, _GEOMETRIC, dtype=torch.float64, device="cpu")
    edges = torch.cat([equal[:1], geometric[:-1], equal[1:]])
    log_alpha, variance = equal.new_zeros(1), equal.new_full((1,), sde.sigma_0**2)
    log_alphas, variances = [log_alpha], [variance]
    for start, end in zip(edges[:-1, None], edges[1:, None], strict=True):
        log_alpha, variance = _advance(sde, log_alpha, variance, start, end)
        log_alphas.append(log_alpha)
        variances.append(variance)
    return edges, torch.cat(log_alphas), torch.cat(variances)


def _advance(sde: Process, log_alpha: Tensor, variance: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Carry log alpha and sigma^2 from ``start`` to ``end``, all ``(n,)``."""
    nodes, weights = (_NODES.to(end) + 1) / 2, _WEIGHTS.to(end) / 2
    length = end - start

    def drift_integral(fraction: Tensor) -> Tensor:
        """Integral of f from start to start + fraction * length, ``fraction`` of shape (n, k)."""
        times = start[:, None, None] + length[:, None, None] * fraction[..., None] * nodes
        return length[:, None] * fraction * (sde.drift_coefficient(times) * weights).sum(-1)

    growth = drift_integral(torch.ones_like(length)[:, None])
    remaining = growth - drift_integral(nodes.expand(len(length), -1))
    g = sde.diffusion(start[:, None] + length[:, None] * nodes)
    added = length * (g**2 * (2 * remaining).exp() * weights).sum(-1)
    return log_alpha + growth[:, 0], variance * (2 * growth[:, 0]).exp() + added
