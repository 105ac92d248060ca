r"""Distances between samples and data that need no network.

Sliced Wasserstein distance (Rabin et al. 2011; Bonneel et al. 2015): the root of the mean, over random directions, of the
squared Wasserstein-2 distance between one-dimensional projections, which sorting gives exactly.
"""

import torch
from torch import Tensor

from score_sde.tensors import generator


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance between two sets of samples ``(N, *D)`` and ``(M, *D)``, in their own units.

    Sets of different sizes are compared at the quantiles of the smaller one. The distance between two sets drawn from the
    same distribution is not 0 but falls with their size: compare it with that between two halves of the data.

    Raises:
        ValueError: the events differ in shape, or a set is empty.
    """
    if a.shape[1:] != b.shape[1:] or not len(a) or not len(b):
        raise ValueError(f"expected two sets of events of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.flatten(1).double(), b.flatten(1).to(a.device).double()
    draw = generator(seed, "directions", device=a.device)
    direction = torch.randn(a.shape[1], directions, generator=draw, device=a.device, dtype=torch.float64)
    direction /= direction.norm(dim=0)
    count = min(len(a), len(b))
    quantiles = (torch.arange(count, device=a.device, dtype=torch.float64) + 0.5) / count
    first, second = (_at_quantiles((set_ @ direction).sort(dim=0).values, quantiles) for set_ in (a, b))
    return (first - second).square().mean().sqrt().item()


def _at_quantiles(ordered: Tensor, quantiles: Tensor) -> Tensor:
    """Values of ``ordered`` ``(n, k)``, whose row i is the quantile (i + 1/2)/n, interpolated at ``quantiles``."""
    position = (quantiles * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (position - low)[:, None])
