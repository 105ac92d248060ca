r"""Halving and doubling the sides of an image, with or without an anti-aliasing filter (Zhang 2019; Karras et al. 2020b).

``upfirdn`` is the one operation behind the filtered kinds: insert zeros, pad, convolve with a separable FIR filter k k^T, and
keep every so-manieth sample. Doubling multiplies the filter by 4, so that a constant stays what it is.

Where a learned 3 x 3 convolution goes with the resampling, it acts on the finer of the two grids, and image and filter are
padded once, at the outset:

    down    filter, then convolve with stride 2
    up      convolve the image with zeros inserted, that is, convolve it transposed with stride 2, then filter
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate, pad


def upfirdn(x: Tensor, kernel: Tensor, padding: tuple[int, int], *, up: int = 1, down: int = 1) -> Tensor:
    """Insert ``up - 1`` zeros after every pixel, pad each side by ``padding``, convolve, and keep every ``down``-th.

    Args:
        x: ``(B, C, H, W)``.
        kernel: ``(L, L)``, applied to every channel.
        padding: zeros before and after; negative numbers crop.

    Returns:
        Sides of (up H + before + after - L) // down + 1.
    """
    length, channels = len(kernel), x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, length, length)
    if up == 1:
        return conv2d(pad(x, padding * 2), weight.flip(2, 3), stride=down, groups=channels)
    full = conv_transpose2d(x, weight, stride=up, groups=channels)  # every overlap of the filter with the image
    before, after = padding[0] - (length - 1), padding[1] + up - 1 - (length - 1)
    return pad(full, (before, after) * 2)[..., ::down, ::down]


class Resample(nn.Module):
    """Halve (``down``) or double (``up``) the sides of an image.

    Args:
        direction: ``down`` or ``up``.
        kernel: the one-dimensional filter, at least 2 numbers; empty for averages of 2 x 2 pixels and repeated pixels.
        conv: channels before and after the 3 x 3 convolution that goes with it; None for no convolution.
    """

    kernel: Tensor

    def __init__(self, direction: str, kernel: Sequence[float] = (), conv: tuple[int, int] | None = None):
        super().__init__()
        if kernel and len(kernel) < 2:
            raise ValueError(f"a filter needs at least two numbers, got {tuple(kernel)}")
        self.up, self.filtered = direction == "up", bool(kernel)
        if kernel:
            taps = torch.tensor(kernel, dtype=torch.float32)
            taps = taps / taps.sum() * (2 if self.up else 1)
            self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)
        self.conv = None
        if conv:
            stride = 2 if self.filtered or not self.up else 1
            self.conv = nn.Conv2d(*conv, 3, stride=stride, padding=0 if stride == 2 else 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to half or twice the sides."""
        if not self.filtered:
            return self._up(x) if self.up else self._down(x)
        length = len(self.kernel)
        if self.conv is None:
            before, after = (length - 1) // 2, (length - 2) // 2
            if self.up:
                return upfirdn(x, self.kernel, (before + 1, after), up=2)
            return upfirdn(x, self.kernel, (before, after), down=2)
        if not self.up:
            return self.conv(upfirdn(x, self.kernel, ((length + 1) // 2, length // 2)))
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)
        fine = conv_transpose2d(x, weight, stride=2)
        excess = length - 4
        fine = upfirdn(fine, self.kernel, ((excess + 1) // 2 + 1, excess // 2 + 1))
        bias: Any = self.conv.bias  # not None, which torch does not know
        return fine + bias[:, None, None]

    def _up(self, x: Tensor) -> Tensor:
        x = interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.conv is not None else x

    def _down(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, 2) if self.conv is None else self.conv(pad(x, (0, 1, 0, 1)))
