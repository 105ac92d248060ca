"""The first two moments of data."""

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.spec import DataSpec


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


def moments(values: Tensor, spec: DataSpec, *, full_up_to: int = 3072, batch: int = 1024) -> Moments:
    """Mean and covariance of ``values`` ``(N, *D)``, given in data units, in model coordinates.

    Integers that are dequantized count as uniform on their bins: 1/12 of a squared bin is added to each variance.
    """
    shift = 0.5 if spec.levels is not None and spec.dequantize else 0.0

    def centred(chunk: Tensor, mean: Tensor | float) -> Tensor:
        return spec.scale(chunk.double() + shift) - mean

    chunks = values.split(batch)
    mean = sum(centred(chunk, 0.0).sum(0) for chunk in chunks) / len(values)
    bin_variance = spec.slope**2 / 12 if shift else 0.0
    if spec.dim <= full_up_to:
        total = sum((flat := centred(chunk, mean).flatten(1)).mT @ flat for chunk in chunks) / len(values)
        return Moments(mean, total + bin_variance * torch.eye(spec.dim, dtype=total.dtype), None)
    axes = tuple(range(2, 1 + len(spec.shape)))
    power = sum(torch.fft.fftn(centred(chunk, mean), dim=axes, norm="ortho").abs().square().sum(0) for chunk in chunks)
    return Moments(mean, None, power / len(values) + bin_variance)
