"""The largest distance between two samples: a sigma_max for the SDE ``ve`` (Song and Ermon 2020, Technique 1)."""

from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.source import BLOCK, DataSource
from score_sde.inputs import whole
from score_sde.tensors import generator


class Distance(NamedTuple):
    """The largest Euclidean distance of two samples in model coordinates, their rows, and how many samples were compared."""

    value: float
    rows: tuple[int, int]
    compared: int


def largest_distance(source: DataSource, *, at_most: int = 5000, seed: int = 0) -> Distance:
    """The largest distance of two samples of a source.

    It is exact where there are ``at_most`` samples; of more, so many are drawn, and the largest distance is at least that of
    these. Two blocks of samples are in memory at a time.

    Args:
        at_most: samples that are compared with each other, at least 2.
        seed: of the rows that are drawn.

    Raises:
        ValueError: there are fewer than two samples.
    """
    whole("at_most", at_most, 2)
    if len(source) < 2:
        raise ValueError(f"a distance needs two samples, there are {len(source)}")
    rows = torch.arange(len(source))
    if len(source) > at_most:
        rows = torch.randperm(len(source), generator=generator(seed, "distances"))[:at_most].sort().values
    parts = rows.split(max(1, BLOCK // source.spec.dim))
    best, pair = -1.0, (0, 0)
    for i, mine in enumerate(parts):
        x = _values(source, mine)
        for others in parts[i:]:
            y = x if others is mine else _values(source, others)
            # |x - y|^2 = |x|^2 + |y|^2 - 2 x y cancels where distances are small, and the largest is not
            squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT
            place = int(squares.argmax())
            if (largest := squares.flatten()[place].item()) > best:
                best, pair = largest, (int(mine[place // len(y)]), int(others[place % len(y)]))
    x, y = _values(source, torch.tensor(pair))
    return Distance((x - y).norm().item(), pair, len(rows))


def _values(source: DataSource, rows: Tensor) -> Tensor:
    """Samples in model coordinates, float64, as vectors; what dequantization would add moves all alike."""
    return source.spec.scale(source.batch(rows).values.double()).flatten(1)
