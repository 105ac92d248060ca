r"""The scaling of continuous data, measured on it: location, spread and limits of each coordinate or channel.

Location and spread are the mean and the standard deviation, unless a few values lie far outside. To find those, take

    the shortest interval that holds 98 % of the values, with mean m and standard deviation s inside.

Values farther than 10 s from m do not count. A Gaussian, a uniform density, modes of some weight have none of them, and are
scaled by their mean and standard deviation exactly. Where 98 % of the values are one and the same, s is 0 and tells nothing.
All values count then: a column of zeros with a few ones has its own mean and standard deviation.

A coordinate that never varies keeps its value as location. Its spread is a ten-thousandth of that value, so that the noise of
sampling does not show beside it; that of a column of zeros is a ten-thousandth of the smallest spread of the others.

The data is read twice: for ends and ``SORTED`` values of each column, which tell what lies outside, then for the moments of
what does not.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.moments import Running
from score_sde.data.source import DataSource, View, blocks
from score_sde.data.spec import DataError, DataSpec

FEW = 0.02
"""Share of the values that may be outliers."""

FAR = 10.0
"""Standard deviations of the others beyond which they are."""

SORTED = 16384
"""Values of a coordinate that are sorted to find them: drawn at random where there are more."""

TOGETHER = 1024
"""Columns that are measured at a time."""

OUTSIDE = 100.0
"""Spreads from the location beyond which a value is worth a warning."""

RESOLVED = 4.0
"""Times the noise at t_min that a scale of the data must have to be learned."""


class _Ends(NamedTuple):
    """The smallest and the largest value of each of some columns, float64 ``(c,)``, and ``(c, n)`` of their values, sorted."""

    low: Tensor
    high: Tensor
    some: Tensor


def standardized(source: DataSource) -> DataSpec:
    """The description of continuous data: vectors scaled by coordinate, anything else by channel.

    Its limits are the smallest and the largest value of each, exactly: clipping to them then changes no value of the data.

    Raises:
        DataError: nothing varies.
    """
    low, high, mean, deviation = (column.tolist() for column in _measured(source))
    if not any(deviation):
        raise DataError("the data is constant: there is nothing to learn")
    least = min(filter(None, deviation))
    spread = [found or 1e-4 * (abs(location) or least) for location, found in zip(mean, deviation, strict=True)]
    return DataSpec(source.spec.shape, location=tuple(mean), spread=tuple(spread), limits=tuple(zip(low, high, strict=True)))


def root_mean_square(source: DataSource) -> float:
    """Root mean square of data in model coordinates, about 0: what ``ScoreModel.sigma_data`` stands for.

    EDM's c_in = 1 / sqrt(sigma^2 + alpha^2 sigma_data^2) brings the mean square of what the network sees to 1, and the network
    sees the data with its mean. Of integers about 1000 samples are taken. Of continuous data all are, but not the few values
    that lie far outside, nor the coordinates or channels that never vary: there is nothing of those to learn.
    """
    spec = source.spec
    if spec.levels is None:
        low, high, mean, deviation = _measured(source)
        location, spread = (torch.tensor(numbers, dtype=torch.float64) for numbers in (spec.location, spec.spread))
        x = (mean - location) / spread if spec.spread else spec.scale(mean)
        squares = x.square() + (deviation / spread if spec.spread else deviation * spec.slope).square()
        return squares[low < high].mean().sqrt().item()
    some = View(source, rows=torch.arange(0, len(source), max(1, len(source) // 1000)))
    shift = 0.5 if spec.dequantize else 0.0
    total = sum(spec.scale(block.values.double() + shift).square().sum().item() for block in blocks(some, "scale"))
    return math.sqrt(total / (len(some) * spec.dim) + (spec.slope**2 / 12 if spec.dequantize else 0.0))


def warn_of_fine_structure(source: DataSource, noise_level: float) -> None:
    """Warn of coordinates or channels of continuous data whose scaling cannot be what is wanted.

    These are those that the noise at t_min erases, that never vary, or that hold values more than ``OUTSIDE`` spreads away.

    The finest scale of a coordinate is that of the shortest interval which holds a tenth of its distinct values, at least 20,
    divided by what this is for a Gaussian of standard deviation 1; where there are 20 distinct values or fewer, their smallest
    distance. It is to be ``RESOLVED`` times the noise.

    Args:
        noise_level: sigma / alpha at t_min.
    """
    spec = source.spec
    if not spec.spread:
        return
    kind = "coordinate" if len(spec.shape) == 1 else "channel"
    fine, constant, outside = [], [], []
    for columns in torch.arange(spec.shape[0]).split(TOGETHER):
        low, high, some = _ends(source, columns)
        far = _count_outside(source, columns, low, high)
        for place, i in enumerate(columns.tolist()):
            location, spread = spec.location[i], spec.spread[i]
            if far[place]:
                outside.append(f"{i} ({far[place]} from {low[place].item():.3g} to {high[place].item():.3g})")
            column = some[place]
            precision = torch.finfo(column.dtype).eps if column.is_floating_point() else 0.0
            column = column.double()
            new = column.diff() > 4 * precision * column[1:].abs()  # not the roundoff of one value
            distinct = torch.cat([column[:1], column[1:][new]])
            if column[0] == column[-1]:
                constant.append(f"{i} ({location:g})")
            elif len(distinct) > 1 and (scale := _finest_scale(distinct, len(column))) < RESOLVED * noise_level * spread:
                fine.append(f"{i} (scale {scale:.2g}, noise {noise_level * spread:.2g})")
    if fine:
        warnings.warn(
            f"{kind} {_first(fine)}: the data varies on a scale that is not well above the noise at t_min, and what is finer "
            "than the noise is not learned: take a smaller t_min (or sigma_min), remove outliers, or transform the data, by a "
            "logarithm for example",
            stacklevel=3,
        )
    if constant:
        warnings.warn(
            f"{kind} {_first(constant)} never varies: samples keep the value, but its density is that of the noise at t_min "
            "alone; leave it out where likelihoods matter",
            stacklevel=3,
        )
    if outside:
        warnings.warn(
            f"{kind} {_first(outside)}: values lie more than {OUTSIDE:.0f} standard deviations of the others away; the scaling "
            "leaves them out, and they are trained on: remove them if they are errors",
            stacklevel=3,
        )


def _first(named: list[str]) -> str:
    return ", ".join(named[:5]) + (" and others" if named[5:] else "")


def _measured(source: DataSource) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each column: its ends, and mean and standard deviation of the values that count; float64 ``(C,)`` each."""
    parts = []
    for columns in torch.arange(source.spec.shape[0]).split(TOGETHER):
        low, high, some = _ends(source, columns)
        middle, unit, centre, reach = map(torch.stack, zip(*map(_that_count, some.double(), low, high), strict=True))
        found = Running()
        for block in blocks(source, "scaling"):
            x = (_columns(block.values, columns).double() - middle[:, None]) / unit[:, None]
            counted = (x - centre[:, None]).abs() <= reach[:, None]
            count = counted.sum((0, 2))
            mean = torch.where(counted, x, 0.0).sum((0, 2)) / count.clamp(min=1)
            found.add(count, mean, torch.where(counted, x - mean[:, None], 0.0).square().sum((0, 2)))
        parts.append((low, high, middle + unit * found.mean, unit * (found.scatter / found.count).sqrt()))
    low, high, mean, deviation = map(torch.cat, zip(*parts, strict=True))
    varies = low < high
    return low, high, torch.where(varies, mean, low), torch.where(varies, deviation, 0.0)


def _that_count(ordered: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which values v of a column count, from some of them, sorted: those where |(v - middle) / unit - centre| <= reach."""
    inside = _shortest(ordered, round((1 - FEW) * len(ordered)))
    middle = inside[len(inside) // 2]
    shifted = inside - middle  # far from 0, or of extreme units, squares would lose it
    unit = shifted.abs().max()
    if not unit > 0:  # nearly all are the same, and all of them count
        largest = torch.maximum(high - middle, middle - low)
        return middle, torch.where(largest > 0, largest, 1.0), torch.zeros_like(unit), torch.full_like(unit, torch.inf)
    shifted = shifted / unit
    return middle, unit, shifted.mean(), FAR * shifted.std(correction=0)


def _columns(values: Tensor, columns: Tensor) -> Tensor:
    """Of ``(B, C, *sides)`` some columns, each with its values of a sample: ``(B, c, sides)``."""
    return values.reshape(*values.shape[:2], -1)[:, columns]


def _ends(source: DataSource, columns: Tensor) -> _Ends:
    """Ends of some columns; of their values all, or ``SORTED`` that are drawn at random."""
    side = source.spec.dim // source.spec.shape[0]
    count = len(source) * side
    places = torch.arange(count)
    if count > SORTED:
        places = torch.randint(count, (SORTED,), generator=torch.Generator().manual_seed(0)).sort().values
    lows, highs, some, first = [], [], [], 0
    for block in blocks(source, "smallest and largest values"):
        values = _columns(block.values, columns)
        lows.append(values.amin((0, 2)))
        highs.append(values.amax((0, 2)))
        ends = torch.tensor([first, first := first + len(values) * side])
        begin, end = torch.searchsorted(places, ends).tolist()
        inside = places[begin:end] - ends[0]
        some.append(values[inside // side, :, inside % side])
    low, high = torch.stack(lows).amin(0).double(), torch.stack(highs).amax(0).double()
    return _Ends(low, high, torch.cat(some).mT.sort().values)


def _count_outside(source: DataSource, columns: Tensor, low: Tensor, high: Tensor) -> list[int]:
    """How many values of some columns lie more than ``OUTSIDE`` spreads away, read only where the ends do."""
    location, spread = (
        torch.tensor(numbers, dtype=torch.float64)[columns] for numbers in (source.spec.location, source.spec.spread)
    )
    if ((torch.maximum(high - location, location - low)) <= OUTSIDE * spread).all():
        return [0] * len(columns)
    far = torch.zeros(len(columns), dtype=torch.int64)
    for block in blocks(source, "values far outside"):
        distance = (_columns(block.values, columns).double() - location[:, None]).abs()
        far += (distance > OUTSIDE * spread[:, None]).sum((0, 2))
    return far.tolist()


def _shortest(ordered: Tensor, count: int) -> Tensor:
    """The ``count`` neighbours among ``ordered`` values that lie closest together."""
    count = max(1, min(count, len(ordered)))
    first = (ordered[count - 1 :] - ordered[: len(ordered) - count + 1]).argmin()
    return ordered[first : first + count]


def _finest_scale(distinct: Tensor, among: int) -> float:
    """The finest scale of sorted ``distinct`` values, two or more of them, that ``among`` values took."""
    if len(distinct) <= 20:
        return distinct.diff().min().item() if among > 10 * len(distinct) else float("inf")
    count = max(20, len(distinct) // 10)
    close = _shortest(distinct, count)
    from statistics import NormalDist  # here: with decimals and fractions it takes long to import

    gaussian = 2 * NormalDist().inv_cdf((1 + (count - 1) / len(distinct)) / 2)
    return (close[-1] - close[0]).item() / gaussian
