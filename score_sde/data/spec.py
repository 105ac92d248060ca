r"""The description of data: shape, levels, scaling.

``DataSpec`` is the one place where data and model coordinates meet. It is an affine map of an interval of the data onto an
interval of the model's coordinates, [-1, 1] by default. For integers 0 ... levels - 1 the interval is

    [0, levels]        where data is dequantized: k + u with u uniform in [0, 1) is then uniform on its own bin
    [0, levels - 1]    where it is not: k itself is mapped, and its bin reaches from k - 1/2 to k + 1/2

The two differ by the width of a bin in model coordinates, log2(levels / (levels - 1)) bits/dim, so the choice belongs to the
model and is saved with it.
"""

import math
from dataclasses import dataclass

from torch import Tensor


class DataError(ValueError):
    """The data cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class DataSpec:
    """Shape, levels and scaling of data.

    Args:
        shape: event shape ``D``.
        levels: for integer data, the number of its values 0 ... levels - 1; None for continuous data.
        dequantize: whether integers are used as k + u (and k alone otherwise).
        data_range: for continuous data, the interval that is mapped onto ``model_range``; ignored for integers.
        model_range: the interval in model coordinates.
    """

    shape: tuple[int, ...]
    levels: int | None = None
    dequantize: bool = True
    data_range: tuple[float, float] = (-1.0, 1.0)
    model_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self):
        for name in ("shape", "data_range", "model_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.shape or any(side < 1 for side in self.shape):
            raise ValueError(f"shape must be positive sizes, one or more, got {self.shape}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        for name, (low, high) in (("data_range", self.data_range), ("model_range", self.model_range)):
            if not low < high:
                raise ValueError(f"{name} must rise, got {(low, high)}")

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the data that is mapped onto ``model_range``."""
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
        return self.dim * math.log(self.slope)

    def scale(self, values: Tensor) -> Tensor:
        """Data values ``(B, *D)`` to model coordinates."""
        return self.model_range[0] + (values - self.interval[0]) * self.slope

    def unscale(self, x: Tensor) -> Tensor:
        """Model coordinates ``(B, *D)`` to data values."""
        return self.interval[0] + (x - self.model_range[0]) / self.slope

    def dequantized(self, integers: Tensor, uniform: Tensor) -> Tensor:
        """Integers ``(B, *D)``, spread over their bins by ``uniform`` in [0, 1), in model coordinates."""
        return self.scale(integers + uniform if self.dequantize else integers + uniform - 0.5)

    def quantized(self, x: Tensor) -> Tensor:
        """Model coordinates to the integers in whose bins they lie; what is outside goes to the nearest."""
        values = self.unscale(x)
        values = values.floor() if self.dequantize else values.round()
        return values.clamp(0, self.levels - 1).long()

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
        """Model coordinates with ``model_range`` mapped onto [0, 1]."""
        start, end = self.model_range
        return (x - start) / (end - start)

    def check(self, values: Tensor, source: str = "the data") -> None:
        """Raise a ``DataError`` unless ``values`` ``(B, *D)`` is data of this description."""
        if tuple(values.shape[1:]) != self.shape:
            turned = ": its channels come last" if values.shape[1:] == (*self.shape[1:], self.shape[0]) else ""
            raise DataError(f"{source} has samples of shape {tuple(values.shape[1:])}, the model expects {self.shape}{turned}")
        if not len(values):
            raise DataError(f"{source} is empty")
        if values.is_floating_point() and not values.isfinite().all():
            raise DataError(f"{source} holds NaN or infinite values; remove or replace them")
        if self.levels is None:
            return
        if values.is_floating_point() and (values != values.round()).any():
            raise DataError(f"{source} holds fractions, the model expects integers from 0 to {self.levels - 1}")
        low, high = values.min().item(), values.max().item()
        if low < 0 or high >= self.levels:
            raise DataError(f"{source} has values from {low:g} to {high:g}, the model expects 0 to {self.levels - 1}")
