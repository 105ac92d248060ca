"""The first two moments of data, read once, in blocks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.source import DataSource, blocks


class Moments(NamedTuple):
    """Mean and covariance of data in model coordinates, in float64.

    ``covariance`` is ``(dim, dim)`` where that is affordable. Beyond, it is None and ``spectrum`` ``(C, *sides)`` holds the
    variance of each orthonormal Fourier coefficient of each channel, the covariance of a stationary field.
    """

    mean: Tensor
    covariance: Tensor | None
    spectrum: Tensor | None

    def __eq__(self, other: object) -> bool:
        return self is other  # the comparison of tensors has no single truth

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Moments(of events {tuple(self.mean.shape)})"


class Running:
    r"""Mean and scatter S = sum (x - mean)^2 of numbers that come in blocks, without the cancellation of sums of squares.

    Two blocks with counts m and n, and means that differ by d, have together (Chan, Golub and LeVeque 1983, Eq. 2.1)

        S = S_m + S_n + d^2 m n / (m + n)

    Args:
        square: d^2 of a difference d of means, an outer product where S is a matrix.
    """

    def __init__(self, square: Callable[[Tensor], Tensor] = lambda d: d.abs().square()):
        self.square = square
        self.count, self.mean, self.scatter = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def add(self, count: Tensor | float, mean: Tensor, scatter: Tensor) -> None:
        """Take in a block. Each number may have a count of its own, which may be 0."""
        count = torch.as_tensor(count, dtype=torch.float64)  # whole numbers would be divided in float32
        total = self.count + count
        share = count / total.clamp(min=1)
        difference = mean - self.mean
        self.scatter = self.scatter + scatter + self.square(difference) * (self.count * share)
        self.mean = self.mean + difference * share
        self.count = total


def moments(source: DataSource, *, full_up_to: int = 3072) -> Moments:
    """Mean and covariance of the samples of a source in model coordinates.

    Integers that are dequantized count as uniform on their bins: 1/12 of a squared bin is added to each variance.

    Args:
        full_up_to: coordinates up to which the whole covariance is kept.
    """
    spec = source.spec
    shift = 0.5 if spec.levels is not None and spec.dequantize else 0.0
    bin_variance = spec.slope**2 / 12 if shift else 0.0
    full = spec.dim <= full_up_to

    def power(x: Tensor) -> Tensor:
        sides = tuple(range(1 - len(spec.shape), 0))  # a vector has none
        return (torch.fft.rfftn(x, dim=sides, norm="ortho") if sides else x).abs().square()

    found = Running((lambda d: torch.outer(d, d)) if full else power)
    for block in blocks(source, "moments"):
        x = spec.scale(block.values.double() + shift)
        x = x.flatten(1) if full else x
        mean = x.mean(0)
        x = x - mean
        found.add(len(x), mean, x.mT @ x if full else power(x).sum(0))
    variance = found.scatter / len(source)
    if full:
        variance += bin_variance * torch.eye(spec.dim, dtype=variance.dtype)
        return Moments(found.mean.reshape(spec.shape), variance, None)
    if len(spec.shape) > 1:
        variance = _mirrored(variance, spec.shape[-1])
    return Moments(found.mean, None, variance + bin_variance)


def _mirrored(half: Tensor, side: int) -> Tensor:
    """The power of every Fourier coefficient of a real field from that of half of them: at -k it is what it is at k."""
    missing = side - half.shape[-1]
    other = half[..., 1 : 1 + missing].flip(-1)
    for axis in range(1, half.ndim - 1):
        other = other.flip(axis).roll(1, axis)
    return torch.cat([half, other], -1)
