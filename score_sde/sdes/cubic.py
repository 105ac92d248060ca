r"""Monotone cubic interpolation (Fritsch and Carlson 1980).

Between nodes the curve is a cubic. Its slopes at the nodes are chosen so that it rises, or falls, wherever the values do. At
an end it may stand still.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


class Cubic(NamedTuple):
    """``nodes`` ``(n + 1,)``, and of each piece the coefficients of the cubic in the distance from its start, ``(4, n)``."""

    nodes: Tensor
    coefficients: Tensor

    def value(self, t: Tensor) -> Tensor:
        """The curve at ``t``, in the shape of ``t``."""
        step, (cubic, square, slope, value) = self._piece(t)
        return ((cubic * step + square) * step + slope) * step + value

    def slope(self, t: Tensor) -> Tensor:
        """Its derivative at ``t``, in the shape of ``t``."""
        step, (cubic, square, slope, _) = self._piece(t)
        return (3 * cubic * step + 2 * square) * step + slope

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        last = self.coefficients.shape[1] - 1
        piece = (torch.searchsorted(self.nodes, t.detach().contiguous(), right=True) - 1).clamp(0, last)
        return t - self.nodes[piece], self.coefficients[:, piece]


def monotone_cubic(
    nodes: ArrayLike, values: ArrayLike, dtype: torch.dtype, device: torch.device, *, least: float = 0.0
) -> Cubic:
    """The curve through ``values`` at the rising ``nodes``, two or more.

    The slope at an end is at least the share ``least`` of that to the next node, from 0 to 1.
    """
    from scipy.interpolate import CubicHermiteSpline, PchipInterpolator  # here: it takes long to import

    curve = PchipInterpolator(nodes, values)
    slopes, secants = curve.derivative()(nodes), np.diff(values) / np.diff(nodes)
    shares = slopes[[0, -1]] / secants[[0, -1]]
    if (shares < least).any():
        slopes[[0, -1]] = np.maximum(shares, least) * secants[[0, -1]]
        curve = CubicHermiteSpline(nodes, values, slopes)
    return Cubic(*(torch.tensor(part, dtype=dtype, device=device) for part in (curve.x, curve.c)))
