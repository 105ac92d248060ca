r"""Time grids: where a fixed-step solver puts its steps.

The noise level n = sigma / alpha is the standard deviation of the noise beside data of unit scale. Most grids of the literature
are simple in n, or in the log-SNR -2 log n:

    uniform     equal steps in t                    DDPM, Song et al. 2021
    quadratic   equal steps in sqrt(t)              DDIM (Song, Meng and Ermon 2021, Appendix D.2)
    log_snr     equal steps in log-SNR              DPM-Solver (Lu et al. 2022a, Section 3.3)
    edm         equal steps in n^(1 / rho)          EDM (Karras et al. 2022, Eq. 5), rho = 7
    cosine      equal steps of the angle arctan n   the cosine schedule (Nichol and Dhariwal 2021, Eq. 17), on any SDE
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from score_sde.inputs import whole
from score_sde.sdes import SDE
from score_sde.tables import OptionError, did_you_mean
from score_sde.tensors import as_time


def _line(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64, device="cpu")


def _in_terms_of(value: Callable, inverse: Callable, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
    """Equal steps in ``value(log_snr)``, whose inverse is ``inverse``."""
    start, end = (float(value(sde.log_snr(as_time(t)))) for t in (t_from, t_to))
    return sde.inverse_log_snr(inverse(_line(start, end, steps)))


def _positive(name: str, number: float) -> None:
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive, got {number}")


class TimeGrid(ABC):
    """A rule that puts ``steps + 1`` times between two."""

    @property
    def count(self) -> int | None:
        """The number of steps, where the grid has its own."""
        return None

    @abstractmethod
    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        """Times ``(steps + 1,)`` in float64 from ``t_from`` to ``t_to``."""


@dataclass(frozen=True)
class PowerGrid(TimeGrid):
    """Equal steps in t^(1 / power)."""

    power: float = 1.0

    def __post_init__(self):
        _positive("power", self.power)

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        return _line(t_from ** (1 / self.power), t_to ** (1 / self.power), steps) ** self.power


@dataclass(frozen=True)
class LogSNRGrid(TimeGrid):
    """Equal steps in log-SNR."""

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        return _in_terms_of(lambda log_snr: log_snr, lambda value: value, sde, t_from, t_to, steps)


@dataclass(frozen=True)
class EDMGrid(TimeGrid):
    """Equal steps in (sigma / alpha)^(1 / rho)."""

    rho: float = 7.0

    def __post_init__(self):
        _positive("rho", self.rho)

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        root = lambda log_snr: (-log_snr / (2 * self.rho)).exp()
        return _in_terms_of(root, lambda value: -2 * self.rho * value.log(), sde, t_from, t_to, steps)


@dataclass(frozen=True)
class CosineGrid(TimeGrid):
    """Equal steps in arctan(sigma / alpha)."""

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        angle = lambda log_snr: torch.atan((-log_snr / 2).exp())
        return _in_terms_of(angle, lambda value: -2 * value.tan().log(), sde, t_from, t_to, steps)


@dataclass(frozen=True)
class ExplicitGrid(TimeGrid):
    """These times, in falling order. Between ends that lie inside the list, those of its times that lie between them.

    Raises:
        ValueError: there are fewer than two times, or they do not fall; when used, the list does not reach the ends.
    """

    nodes: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "nodes", tuple(float(t) for t in self.nodes))
        if (
            len(self.nodes) < 2
            or any(not s < t for t, s in pairwise(self.nodes))
            or not 0 <= self.nodes[-1] < self.nodes[0] < math.inf
        ):
            raise ValueError(f"an explicit grid needs at least two times in falling order, got {list(self.nodes)}")

    @property
    def count(self) -> int:
        return len(self.nodes) - 1

    def halved(self) -> "ExplicitGrid":
        """These times and those midway between them."""
        middle = [(t + s) / 2 for t, s in pairwise(self.nodes)]
        return ExplicitGrid(tuple(sorted((*self.nodes, *middle), reverse=True)))

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        low, high = min(t_from, t_to), max(t_from, t_to)
        margin = 1e-9 * (high - low)
        if high > self.nodes[0] + margin or low < self.nodes[-1] - margin:
            raise ValueError(
                f"the grid is a list of times from {self.nodes[0]:g} to {self.nodes[-1]:g}, which does not reach from {high:g} "
                f"to {low:g}: give times that do"
            )
        inner = [t for t in self.nodes if low + margin < t < high - margin]
        return torch.tensor([t_from, *(inner if t_from > t_to else reversed(inner)), t_to], dtype=torch.float64, device="cpu")


def quadratic_grid() -> PowerGrid:
    """Equal steps in sqrt(t)."""
    return PowerGrid(2.0)


TIME_GRIDS: dict[str, Callable[[], TimeGrid]] = {
    "uniform": PowerGrid,
    "quadratic": quadratic_grid,
    "log_snr": LogSNRGrid,
    "edm": EDMGrid,
    "cosine": CosineGrid,
}
"""Name -> what builds a grid."""


def as_grid(grid: str | TimeGrid) -> TimeGrid:
    """The grid of that name, an explicit one from times separated by commas, or ``grid`` itself.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(grid, TimeGrid):
        return grid
    if grid in TIME_GRIDS:
        return TIME_GRIDS[grid]()
    if "," in grid:
        try:
            return ExplicitGrid(tuple(float(part) for part in grid.split(",")))
        except ValueError as error:
            raise ValueError(f"a list of times is numbers separated by commas, in falling order: {error}") from None
    names = ", ".join(TIME_GRIDS)
    raise OptionError(
        f"unknown time grid {grid!r}{did_you_mean(grid, TIME_GRIDS)}; choose one of {names}, or give times: '1,0.5,0.1'"
    )


def time_grid(grid: str | TimeGrid, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
    """Times of ``grid`` in float64, the ends exactly ``t_from`` and ``t_to``."""
    times = as_grid(grid).times(sde, t_from, t_to, steps)
    times[0], times[-1] = t_from, t_to
    return times


def check_grid(grid: str | TimeGrid, steps: int) -> TimeGrid:
    """The grid; a ``ValueError`` for an unknown one, or a number of steps below 1."""
    whole("steps", steps, 1)
    return as_grid(grid)
