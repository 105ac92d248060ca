r"""The description of data: shape, levels, scaling.

``DataSpec`` is the one place where data and model coordinates meet. It is an affine map of an interval of the data onto an
interval of the model's coordinates, [-1, 1] by default. For integers 0 ... levels - 1 the interval is

    [0, levels]        where data is dequantized: k + u with u uniform in [0, 1) is then uniform on its own bin
    [0, levels - 1]    where it is not: k itself is mapped, and its bin reaches from k - 1/2 to k + 1/2

The two differ by the width of a bin in model coordinates, log2(levels / (levels - 1)) bits/dim, so the choice belongs to the
model and is saved with it.

Continuous data may instead have a location and a spread for each coordinate of a vector, or for each channel of anything else:

    x = (value - location) / spread

Its columns may have any units. Both are applied in float64: a value far from 0 has few digits left for what varies.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from score_sde.inputs import require_finite, whole


class DataError(ValueError):
    """The data cannot be used as it is; the message says why and what to do.

    ``remedy`` is an option of a data set with a value that may mend it, as ``("file.layout", "channels_last")``; None where
    there is no such option.
    """

    def __init__(self, message: str, *, remedy: tuple[str, str] | None = None):
        super().__init__(message)
        self.remedy = remedy


class DataWarning(UserWarning):
    """The data can be used, but may not be what is meant; ``remedy`` is as that of a ``DataError``."""

    def __init__(self, message: str, *, remedy: tuple[str, str] | None = None):
        super().__init__(message)
        self.remedy = remedy


@lru_cache(maxsize=64)
def _column(numbers: tuple[float, ...], rank: int, device: torch.device) -> Tensor:
    """Numbers as ``(n, 1, ..., 1)``, in float64, placed once: a copy to a GPU would be waited for."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.float64, device=device).reshape(-1, *[1] * (rank - 1))


@dataclass(frozen=True)
class DataSpec:
    """Shape, levels and scaling of data.

    Args:
        shape: event shape ``D``.
        levels: for integer data, the number of its values 0 ... levels - 1; None for continuous data.
        dequantize: whether integers are used as k + u (and k alone otherwise).
        data_range: for continuous data, the interval that is mapped onto ``model_range``; ignored for integers.
        model_range: the interval in model coordinates.
        location, spread: for continuous data, one of each for every coordinate of a vector ``(d,)`` and for every channel of
            ``(C, ...)``; they take the place of ``data_range`` and ``model_range``.
        limits: for continuous data, its smallest and its largest value, a pair for each coordinate or channel or one for all;
            empty where they are not known. Pictures are drawn, and samples may be clipped, in this range.
    """

    shape: tuple[int, ...]
    levels: int | None = None
    dequantize: bool = True
    data_range: tuple[float, float] = (-1.0, 1.0)
    model_range: tuple[float, float] = (-1.0, 1.0)
    location: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    limits: tuple[tuple[float, float], ...] = ()

    def __post_init__(self):
        for name in ("shape", "data_range", "model_range", "location", "spread"):
            value = getattr(self, name)
            if not isinstance(value, Iterable) or isinstance(value, str):
                example = "(3, 32, 32)" if name == "shape" else "(0.0, 1.0)"
                raise ValueError(f"{name} must be a tuple, such as {example}, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "limits", tuple(map(tuple, self.limits)))
        if not self.shape or any(side < 1 for side in self.shape):
            raise ValueError(f"shape must be positive sizes, one or more, got {self.shape}")
        for side in self.shape:
            whole("a side of the shape", side, 1)
        if self.dim > 2**40:
            raise ValueError(f"shape must be sizes that memory can hold, got {self.shape}")
        if self.levels is not None and whole("levels", self.levels, 2) > 2**53:
            raise ValueError(f"levels must be at most 2^53, got {self.levels}")
        if not isinstance(self.dequantize, bool):
            raise ValueError(f"dequantize must be True or False, got {self.dequantize!r}")
        for name, (low, high) in (("data_range", self.data_range), ("model_range", self.model_range)):
            for end in (low, high):
                require_finite({name: end})
            if not low < high:
                raise ValueError(f"{name} must rise, got {(low, high)}")
        if self.levels is not None and (self.location or self.spread or self.limits):
            raise ValueError("integers have levels: location, spread and limits are for continuous data")
        if len(self.location) != len(self.spread) or len(self.spread) not in (0, self.shape[0]):
            given = f"{len(self.location)} and {len(self.spread)}"
            raise ValueError(f"location and spread need a number for each of {self.shape[0]}, got {given}")
        if not all(math.isfinite(a) and math.isfinite(b) and b > 0 for a, b in zip(self.location, self.spread, strict=True)):
            raise ValueError("location must be finite, and spread positive and finite")
        if len(self.limits) not in (0, 1, self.shape[0]):
            raise ValueError(f"limits need one pair, or a pair for each of {self.shape[0]}, got {len(self.limits)}")
        if not all(len(pair) == 2 and -math.inf < pair[0] <= pair[1] < math.inf for pair in self.limits):
            raise ValueError(f"limits must be pairs of a smallest and a largest value, got {self.limits}")

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @property
    def bins(self) -> int:
        """The number of values of integer data; a ``ValueError`` for continuous data."""
        if self.levels is None:
            raise ValueError("continuous data has no bins")
        return self.levels

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the data that is mapped onto ``model_range``; a ``ValueError`` where coordinates have their own."""
        if self.spread:
            raise ValueError("each coordinate or channel of this data has an interval of its own: location -+ spread")
        if self.levels is None:
            return self.data_range
        return 0.0, float(self.levels if self.dequantize else self.levels - 1)

    @property
    def slope(self) -> float:
        """d(model coordinate) / d(data value): for integer data, the width of a bin in model coordinates."""
        (low, high), (start, end) = self.interval, self.model_range
        return (end - start) / (high - low)

    @property
    def log_det(self) -> float:
        """Log-determinant of ``scale`` in nats: log p(data) = log p(model coordinates) + log_det."""
        if self.spread:
            return -self.dim // len(self.spread) * math.fsum(map(math.log, self.spread))
        return self.dim * math.log(self.slope)

    def scale(self, values: Tensor) -> Tensor:
        """Data values ``(B, *D)`` to model coordinates, in their dtype but not below float32."""
        if self.spread:
            precise = values.dtype if values.is_floating_point() else torch.get_default_dtype()
            x = (values.double() - self._placed(self.location, values)) / self._placed(self.spread, values)
            return x.to(torch.promote_types(precise, torch.float32))
        return self.model_range[0] + (values - self.interval[0]) * self.slope

    def unscale(self, x: Tensor) -> Tensor:
        """Model coordinates ``(B, *D)`` to data values; in float64 where some lie more than 1000 spreads from 0."""
        if self.spread:
            values = self._placed(self.location, x) + x.double() * self._placed(self.spread, x)
            far = any(abs(a) > 1000 * b for a, b in zip(self.location, self.spread, strict=True))
            return values if far else values.to(torch.promote_types(x.dtype, torch.float32))
        return self.interval[0] + (x - self.model_range[0]) / self.slope

    def _placed(self, numbers: tuple[float, ...], beside: Tensor) -> Tensor:
        """A number for each coordinate or channel, in the shape that meets ``beside`` ``(B, *D)``."""
        return _column(numbers, len(self.shape), beside.device)

    def dequantized(self, integers: Tensor, uniform: Tensor | float) -> Tensor:
        """Integers ``(B, *D)``, spread over their bins by ``uniform`` in [0, 1), in model coordinates."""
        return self.scale(integers + uniform if self.dequantize else integers + uniform - 0.5)

    def quantized(self, x: Tensor) -> Tensor:
        """Model coordinates to the integers in whose bins they lie; what is outside goes to the nearest.

        Raises:
            ValueError: the data is continuous.
        """
        last = self.bins - 1
        values = self.unscale(x)
        values = values.floor() if self.dequantize else values.round()
        return values.clamp(0, last).long()

    def encode(self, values: Tensor, uniform: Tensor) -> Tensor:
        """Data as it is stored to model coordinates, in the dtype of ``uniform``, which dequantizes data that is to be."""
        if self.levels is not None and self.dequantize:
            return self.dequantized(values, uniform)
        return self.scale(values).to(uniform.dtype)  # before rounding: data may lie far from 0

    def decode(self, x: Tensor) -> Tensor:
        """Model coordinates to data: integers where the data is integer, else its own units."""
        return self.unscale(x) if self.levels is None else self.quantized(x)

    def displayed(self, x: Tensor) -> Tensor:
        """Model coordinates as they are drawn: images and volumes in [0, 1], anything else in its own units."""
        if len(self.shape) < 3:
            return self.unscale(x)
        return self.unit(x) if self.levels is None else self.quantized(x) / (self.levels - 1)

    def unit(self, x: Tensor) -> Tensor:
        """Model coordinates with the ``limits`` of the data mapped onto [0, 1]; with ``model_range`` where it has none."""
        if self.limits:
            whole = min(low for low, _ in self.limits), max(high for _, high in self.limits)
            pairs = [pair if pair[0] < pair[1] else whole for pair in self.limits]  # a constant channel has no range of its own
            lows, widths = zip(*[(low, (high - low) or 1.0) for low, high in pairs], strict=True)
            return ((self.unscale(x) - self._placed(lows, x)) / self._placed(widths, x)).to(x.dtype)
        start, end = self.model_range
        return (x - start) / (end - start)

    def model_limits(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[float, float] | tuple[Tensor, Tensor]:
        """The smallest and the largest value of the data in model coordinates, to clip samples to.

        Two numbers for integers; for continuous data two tensors that meet ``(B, *D)``.

        Raises:
            DataError: the data is continuous, and its limits are not known.
        """
        if self.levels is not None:
            return self.model_range
        if not self.limits:
            raise DataError("the range of the data is not known")
        beside = torch.empty(0, device=device)
        low, high = (self.scale(self._placed(ends, beside)).to(dtype) for ends in zip(*self.limits, strict=True))
        return low, high

    def check(self, values: Tensor, source: str = "the data") -> None:
        """Raise a ``DataError`` unless ``values`` ``(B, *D)`` is data of this description."""
        if tuple(values.shape[1:]) != self.shape:
            turned = ": its channels come last" if values.shape[1:] == (*self.shape[1:], self.shape[0]) else ""
            raise DataError(f"{source} has samples of shape {tuple(values.shape[1:])}, the model expects {self.shape}{turned}")
        if not len(values):
            raise DataError(f"{source} is empty")
        if values.is_complex():
            raise DataError(f"{source} holds complex numbers: give their real and imaginary parts as coordinates")
        if values.is_floating_point() and not values.isfinite().all():
            raise DataError(f"{source} holds NaN or infinite values; remove or replace them")
        if self.levels is None:
            return
        if values.is_floating_point() and (values != values.round()).any():
            raise DataError(f"{source} holds fractions, the model expects integers from 0 to {self.levels - 1}")
        low, high = values.min().item(), values.max().item()
        if low < 0 or high >= self.levels:
            raise DataError(f"{source} has values from {low:g} to {high:g}, the model expects 0 to {self.levels - 1}")
