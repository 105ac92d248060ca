r"""The scaling of continuous data, measured on it: location, spread and limits of each coordinate or channel.

Location and spread are the mean and the standard deviation, unless a few values lie far outside. To find those, take

    the shortest interval that holds 98 % of the values, with mean m and standard deviation s inside.

Values farther than 10 s from m do not count. A Gaussian, a uniform density, modes of some weight have none of them, and are
scaled by their mean and standard deviation exactly. Where 98 % of the values are one and the same, s is 0 and tells nothing.
All values count then: a column of zeros with a few ones has its own mean and standard deviation.

A coordinate that never varies keeps its value as location. Its spread is a ten-thousandth of that value, so that the noise of
sampling does not show beside it; that of a column of zeros is a ten-thousandth of the smallest spread of the others.
"""

import warnings
from statistics import NormalDist

import torch
from torch import Tensor

from score_sde.data.moments import moments
from score_sde.data.spec import DataError, DataSpec

FEW = 0.02
"""Share of the values that may be outliers."""

FAR = 10.0
"""Standard deviations of the others beyond which they are."""

SORTED = 16384
"""Values of a coordinate that are sorted to find them: drawn at random where there are more."""

OUTSIDE = 100.0
"""Spreads from the location beyond which a value is worth a warning."""

RESOLVED = 4.0
"""Times the noise at t_min that a scale of the data must have to be learned."""


def standardized(values: Tensor) -> DataSpec:
    """The description of continuous ``values`` ``(N, *D)``: vectors scaled by coordinate, anything else by channel.

    Its limits are the smallest and the largest value of each, exactly: clipping to them then changes no value of the data.

    Raises:
        DataError: nothing varies.
    """
    measured, ends = [], []
    for i in range(values.shape[1]):
        column = values[:, i].flatten().double()
        ends.append((column.min().item(), column.max().item()))
        measured.append(_location_and_spread(column) if ends[i][0] < ends[i][1] else (ends[i][0], 0.0))
    varying = [spread for _, spread in measured if spread]
    if not varying:
        raise DataError("the data is constant: there is nothing to learn")
    measured = [(location, spread or 1e-4 * (abs(location) or min(varying))) for location, spread in measured]
    location, spread = zip(*measured, strict=True)
    return DataSpec(tuple(values.shape[1:]), location=location, spread=spread, limits=tuple(ends))


def root_mean_square(values: Tensor, spec: DataSpec) -> float:
    """Root mean square of data ``(N, *D)`` in model coordinates, about 0: what ``ScoreModel.sigma_data`` stands for.

    EDM's c_in = 1 / sqrt(sigma^2 + alpha^2 sigma_data^2) brings the mean square of what the network sees to 1, and the network
    sees the data with its mean. Of integers about 1000 samples are taken. Of continuous data all are, but not the few values
    that lie far outside, nor the coordinates or channels that never vary: there is nothing of those to learn.
    """
    if spec.levels is not None:
        found = moments(values[:: max(1, len(values) // 1000)], spec, full_up_to=0)
        return (found.spectrum.mean() + found.mean.square().mean()).sqrt().item()
    squares = []
    for i in range(values.shape[1]):  # one at a time: in float64 all of them may not fit
        column = values[:, i].flatten().double()
        x = (column - spec.location[i]) / spec.spread[i] if spec.spread else spec.scale(column)
        if x.min() < x.max():
            squares.append(_counted(x).square().mean())
    return torch.stack(squares).mean().sqrt().item()


def warn_of_fine_structure(values: Tensor, spec: DataSpec, noise_level: float) -> None:
    """Warn of coordinates or channels of continuous ``values`` ``(N, *D)`` whose scaling cannot be what is wanted.

    These are those that the noise at t_min erases, that never vary, or that hold values more than ``OUTSIDE`` spreads away.

    The finest scale of a coordinate is that of the shortest interval which holds a tenth of its distinct values, at least 20,
    divided by what this is for a Gaussian of standard deviation 1; where there are 20 distinct values or fewer, their smallest
    distance. It is to be ``RESOLVED`` times the noise.

    Args:
        noise_level: sigma / alpha at t_min.
    """
    if not spec.spread:
        return
    kind = "coordinate" if len(spec.shape) == 1 else "channel"
    fine, constant, outside = [], [], []
    for i, (location, spread) in enumerate(zip(spec.location, spec.spread, strict=True)):
        column = values[:, i].flatten()
        if count := int(((column.double() - location).abs() > OUTSIDE * spread).sum()):
            outside.append(f"{i} ({count} from {column.min().item():.3g} to {column.max().item():.3g})")
        column = _some(column).sort().values
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


def _location_and_spread(column: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the values that count of a column ``(n,)`` which varies."""
    counted = _counted(column)
    middle = counted.median()
    shifted = counted - middle  # far from 0, or of extreme units, squares would lose it
    unit = shifted.abs().max()
    location = (middle + unit * (shifted / unit).mean()).item()
    return location, (unit * (shifted / unit).std(correction=0)).item()


def _counted(column: Tensor) -> Tensor:
    """A column ``(n,)`` in float64 without the few values that lie far outside."""
    ordered = _some(column).sort().values
    inside = _shortest(ordered, round((1 - FEW) * len(ordered)))
    middle = inside[len(inside) // 2]
    shifted = inside - middle
    unit = shifted.abs().max()
    if not unit > 0:  # nearly all are the same
        return column
    shifted = shifted / unit
    distance = (column - middle) / unit - shifted.mean()
    return column[distance.abs() <= FAR * shifted.std(correction=0)]


def _some(column: Tensor) -> Tensor:
    """A column ``(n,)``, or ``SORTED`` values of it drawn at random."""
    if len(column) <= SORTED:
        return column
    return column[torch.randint(len(column), (SORTED,), generator=torch.Generator().manual_seed(0)).to(column.device)]


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
    gaussian = 2 * NormalDist().inv_cdf((1 + (count - 1) / len(distinct)) / 2)
    return (close[-1] - close[0]).item() / gaussian
