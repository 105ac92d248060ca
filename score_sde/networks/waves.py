r"""Fourier features of the input, for networks of a high likelihood (Kingma et al. 2021, Section 3.4 and Appendix C).

Integers of L levels in [-1, 1] have bins of the width 2 / L. At low noise the density has the structure of the bins. To a
network, whose inputs are of the order of 1, two points of one bin look nearly alike. The features

    sin(pi k x), cos(pi k x)

have k waves over [-1, 1], each 2 / k long. With k = L a wave is as long as a bin: it says where in a bin x lies. With k = L / 2
it also tells even bins from odd ones. VDM takes both, 2^8 and 2^7 for 256 levels. Data in [0, 1] has bins half as wide, and
takes twice these k.

A network is given c_in x. Noise hides the structure of bins unless sigma is far below 1. There x is x0 plus noise: for a
variance-preserving SDE alpha = sqrt(1 - sigma^2) differs from 1 by sigma^2 / 2, far less than sigma. VDM's z_t is this x. The
same holds of c_in x where c_in = (alpha^2 + sigma^2)^(-1/2), which is c_in of every parameterization but ``edm``. There c_in
tends to 1 / sigma_data, so that bins appear 1 / sigma_data times as wide. Such a network is better given x itself
(``scale_input=False``); for the VE SDE, whose x is large at T, k sigma_data waves do the same.

An error of x is an error of phase pi k times as large. Just below 1, bfloat16 has steps of 2^-8, half a bin of 256 levels. So x
is taken, and its features are computed, in float32 or better.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def with_waves(x: Tensor, counts: Sequence[float]) -> Tensor:
    """x, then its sines, then its cosines, as channels, in float32 or better.

    Args:
        x: ``(B, C, *sides)``.
        counts: K numbers k of waves over [-1, 1].

    Returns:
        ``(B, (1 + 2 K) C, *sides)``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    angles = torch.cat([math.pi * count * x for count in counts], dim=1)
    return torch.cat([x, angles.sin(), angles.cos()], dim=1)
