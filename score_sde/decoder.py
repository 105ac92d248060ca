r"""The discretized Gaussian: the probability of a bin of the data (Ho et al. 2020, Eq. 13).

With a < b the ends of a bin in units of std from the mean, taken on the side where a + b <= 0,

    log(Phi(b) - Phi(a)) = log Phi(b) + log(-expm1(-d)),   d = log Phi(b) - log Phi(a),

and in the tail, where Phi(z) = exp(-z^2/2) erfcx(-z / sqrt 2) / 2, the leading part (a^2 - b^2) / 2 of d is the product of
the bin's width and its distance, which loses no digits. The first and the last bin are open.

With P the probability and phi the normal density, the gradient of log P in b is phi(b) / P and in a it is -phi(a) / P, where
phi(b) / Phi(b) = sqrt(2 / pi) / erfcx(-b / sqrt 2). It is written out: autograd would divide by the zeros of what is not taken.
"""

import math
from typing import Any

import torch
from torch import Tensor

from score_sde.data import DataSpec


def centres(integers: Tensor, data: DataSpec) -> Tensor:
    """The centres of the bins in model coordinates, float64: where the model sees the integers."""
    return data.dequantized(integers.double(), torch.tensor(0.5, dtype=torch.float64))


def discretized_gaussian(integers: Tensor, mean: Tensor, std: Tensor | float, data: DataSpec) -> Tensor:
    """Log-probability in nats of the bins of ``integers`` under N(mean, std^2), float64, ``(B, *D)``.

    It has a gradient in ``mean`` and in ``std``.

    Args:
        integers: ``(B, *D)``, from 0 to levels - 1.
        mean, std: in model coordinates, of a shape that broadcasts with ``integers``.
        data: levels and width of the bins.
    """
    mean, std = mean.double(), torch.as_tensor(std, dtype=torch.float64, device=mean.device)
    centre = (centres(integers, data) - mean) / std
    half = data.slope / 2 / std
    below = torch.where(integers == 0, -math.inf, centre - half)
    above = torch.where(integers == data.bins - 1, math.inf, centre + half)
    return _LogInterval.apply(below, above, centre.detach(), half.detach())


class _LogInterval(torch.autograd.Function):
    """log(Phi(above) - Phi(below)), where ``centre`` -+ ``half`` are the ends that are not infinite."""

    @staticmethod
    def forward(ctx: Any, below: Tensor, above: Tensor, centre: Tensor, half: Tensor) -> Tensor:
        flip = below + above > 0
        a, b = torch.where(flip, -above, below), torch.where(flip, -below, above)
        tails = [torch.special.erfcx(-z / math.sqrt(2)) for z in (a, b)]
        slope = torch.where(a.isinf(), math.inf, 2 * half * centre.abs())  # (a^2 - b^2) / 2
        near = torch.special.log_ndtr(b) - torch.special.log_ndtr(a)
        share = -torch.expm1(-torch.where(b > 0, near, slope + (tails[1] / tails[0]).log()))  # P / Phi(b)
        at_b = math.sqrt(2 / math.pi) / tails[1] / share
        at_a = at_b * (-slope).exp()
        ctx.save_for_backward(torch.where(flip, at_b, at_a), torch.where(flip, at_a, at_b))
        return torch.special.log_ndtr(b) + share.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        at_below, at_above = ctx.saved_tensors
        return -gradients[0] * at_below, gradients[0] * at_above, None, None
