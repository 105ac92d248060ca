"""What is measured of samples: one table, from which come the terminal's, the CSV's, the figures' and the page's.

A quantity is a number, or two for the ends of an interval; NaN is what does not apply. To add one, write its row in
``QUANTITIES``, and a field of the same name in ``Measurement``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from score_sde.exact import MixtureScore
from score_sde.metrics import (
    EnergyDistance,
    Estimate,
    Features,
    PrecisionRecall,
    precision_recall,
    principal_components,
    sliced_wasserstein,
)
from score_sde.tensors import SampleNoise

FEWEST = 20
"""Fewer points in a set than this have no precision and recall: their standard errors would be above 0.1."""

NEIGHBOUR = 3
"""The k of precision and recall."""


@dataclass(frozen=True)
class Measurement:
    """One solver at one budget, with all its ``settings``; NaN is what does not apply.

    ``nfe`` evaluations were counted, in ``seconds`` of which ``overhead`` were not spent in the network: what the solver itself
    takes, its random numbers included. All distances are in model coordinates. ``distance`` is the sliced Wasserstein
    distance to the data; ``energy`` the energy distance, ``energy_low`` and ``energy_high`` the ends of its 95 % interval;
    ``precision`` and ``recall`` are shares. ``error`` is the root mean square difference from the converged ODE solution
    from the same latents, of a deterministic solver. ``nll`` is the mean negative log-density in nats per dimension under the
    exact mixture noised to the end time, where the score (below all that wraps it) is that of a mixture. It is no distance:
    samples that crowd into the modes have a lower one than the mixture itself.
    """

    solver: str
    budget: int
    nfe: int
    seconds: float
    overhead: float
    distance: float
    energy: float
    energy_low: float
    energy_high: float
    precision: float
    recall: float
    error: float
    nll: float
    settings: str = ""


class Judge:
    """What samples are judged by: data ``(N, *D)`` in model coordinates, and the exact mixture where that is known."""

    def __init__(self, data: Tensor, mixture: MixtureScore | None, *, features: Features | None = None, seed: int):
        self.data, self.mixture = data, mixture
        self.features = features or principal_components(data)
        self.energy = EnergyDistance(data, seed=seed)

    def nll(self, x: Tensor) -> float:
        """Mean negative log-density of ``x`` ``(B, *D)`` in nats per dimension; NaN where there is no mixture."""
        if self.mixture is None:
            return math.nan
        return -self.mixture.log_prob(x, self.mixture.sde.t_min).double().mean().item() / math.prod(x.shape[1:])

    def entropy(self, *, seed: int, draws: int = 4096) -> float:
        """The negative log-density of exact draws, noised to the end time."""
        if self.mixture is None:
            return math.nan
        sde, clean = self.mixture.sde, self.mixture.mixture.sample(draws, seed=seed)
        noise = SampleNoise(seed, clean.shape, purpose="entropy", device=clean.device, dtype=clean.dtype).normal()
        return self.nll(sde.alpha(sde.t_min) * clean + sde.sigma(sde.t_min) * noise)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples ``x`` ``(B, *D)``, what they took, and what they are judged by."""

    x: Tensor
    judge: Judge
    nfe: int = 0
    seconds: float = math.nan
    overhead: float = math.nan
    solution: Tensor | None = None
    """The converged solution from the same latents, of a deterministic solver."""

    @cached_property
    def energy(self) -> Estimate:
        return self.judge.energy(self.x)

    @cached_property
    def coverage(self) -> PrecisionRecall:
        """Precision and recall. Both depend on the sizes of the sets, so as many samples as data points are taken."""
        count = min(len(self.x), len(self.judge.data))
        if count < FEWEST:
            return PrecisionRecall(math.nan, math.nan)
        return precision_recall(self.x[:count], self.judge.data[:count], k=NEIGHBOUR, features=self.judge.features)

    def measured(self, solver: str, budget: int, settings: str = "") -> Measurement:
        """All quantities."""
        found: dict = {}
        for quantity in QUANTITIES:
            found |= zip(quantity.keys, quantity.measure(self), strict=True)
        return Measurement(solver=solver, budget=budget, settings=settings, **found)


@dataclass(frozen=True)
class Panel:
    """A picture of a quantity against evaluations.

    Args:
        title: above it.
        value: what is shown of a measurement, given that of other data as well.
        scale: ``log``; ``symlog`` where values may be negative; ``linear`` for shares.
        floor: whether other data has a value too.
        interval: keys of the ends of an interval of the quantity.
    """

    title: str
    value: Callable[[Measurement, Measurement], float]
    scale: str = "log"
    floor: bool = True
    interval: tuple[str, str] | None = None


@dataclass(frozen=True)
class Quantity:
    """Something that is measured.

    Args:
        keys: fields of ``Measurement``, and columns of the CSV: one, or two for the ends of an interval.
        heading: of its column in a table.
        explanation: for readers, in HTML.
        measure: the numbers of its keys.
        digits: after the point, in tables; None for a count, of which 0 is not shown.
        powers: whether what would be shown as 0 is shown by powers of ten.
        best: ``min`` or ``max`` where a value is better than another.
        cost: whether it is what sampling takes rather than how good samples are.
        panel: its picture, if it has one.
    """

    keys: tuple[str, ...]
    heading: str
    explanation: str
    measure: Callable[[Drawn], tuple[float, ...]]
    digits: int | None = 4
    powers: bool = False
    best: Callable | None = None
    cost: bool = False
    panel: Panel | None = None

    def value(self, measurement: Measurement) -> float:
        """Its number, the first one of an interval."""
        return getattr(measurement, self.keys[0])

    def cell(self, measurement: Measurement) -> str:
        """What a table shows: "" for what does not apply."""
        numbers = [self._text(getattr(measurement, key)) for key in self.keys]
        return " to ".join(numbers) if all(numbers) else ""

    def _text(self, value: float) -> str:
        """A number: a diverged one, and with ``powers`` one that would be shown as 0, by powers of ten."""
        if self.digits is None:
            return str(value) if value else ""
        if math.isnan(value):
            return ""
        tiny = self.powers and 0 < abs(value) < 10.0 ** (1 - self.digits)
        return f"{value:.1e}" if tiny or abs(value) >= 1e4 else f"{value:.{self.digits}f}"


def root_mean_square(difference: Tensor) -> float:
    """The root of the mean square of all numbers of ``difference``."""
    return difference.double().square().mean().sqrt().item()


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        ("nfe",),
        "evaluations",
        "Calls of the network, counted; what sampling costs.",
        lambda d: (d.nfe,),
        digits=None,
        cost=True,
    ),
    Quantity(("seconds",), "seconds", "Wall time for all samples of a row.", lambda d: (d.seconds,), digits=3, cost=True),
    Quantity(
        ("overhead",),
        "overhead",
        "Seconds of it that were not spent in the network: the solver's own arithmetic and its random numbers.",
        lambda d: (d.overhead,),
        digits=3,
        cost=True,
        panel=Panel("overhead, ms per evaluation", lambda m, _: 1e3 * m.overhead / max(1, m.nfe), floor=False),
    ),
    Quantity(
        ("distance",),
        "sliced W2",
        "Sliced Wasserstein distance to the held-out data, the root of the mean squared distance of quantiles over 512 random "
        "directions. It is not 0 for a perfect sampler: see <em>data against data</em>.",
        lambda d: (sliced_wasserstein(d.x, d.judge.data),),
        best=min,
        panel=Panel("sliced Wasserstein distance", lambda m, _: m.distance),
    ),
    Quantity(
        ("energy",),
        "energy",
        "Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| to the held-out data, estimated without bias: 0 on average for a "
        "perfect sampler, so that single values may be negative.",
        lambda d: (d.energy.value,),
        best=min,
        panel=Panel("energy distance, 95 % interval", lambda m, _: m.energy, "symlog", interval=("energy_low", "energy_high")),
    ),
    Quantity(
        ("energy_low", "energy_high"),
        "95 % interval",
        "Of the energy distance: percentile bootstrap over samples and data. All rows share the data and its resamples, so "
        "differences between rows are surer than the intervals say.",
        lambda d: (d.energy.low, d.energy.high),
    ),
    Quantity(
        ("precision",),
        "precision",
        "Share of the samples that lie within the data: in a ball around a data point that reaches to its third nearest "
        "neighbour (Kynkäänniemi et al. 2019). Of data with more than 32 coordinates the first 32 principal components are "
        "taken, and the norm of the rest. How good samples are.",
        lambda d: (d.coverage.precision,),
        digits=2,
        best=max,
        panel=Panel("precision", lambda m, _: m.precision, "linear"),
    ),
    Quantity(
        ("recall",),
        "recall",
        "Share of the data that lies within the samples, by the same rule: how varied samples are. Samples that are scattered "
        "far apart have large balls, so recall means nothing where precision is near 0.",
        lambda d: (d.coverage.recall,),
        digits=2,
        best=max,
        panel=Panel("recall", lambda m, _: m.recall, "linear"),
    ),
    Quantity(
        ("error",),
        "ODE error",
        "Root mean square difference from the converged solution of the probability-flow ODE from the same latents, for "
        "deterministic solvers; for the converged ODE, from a solution to a tenth of its tolerance.",
        lambda d: (math.nan if d.solution is None else root_mean_square(d.x - d.solution),),
        powers=True,
        best=min,
        panel=Panel("RMS error to the converged ODE", lambda m, _: m.error, floor=False),
    ),
    Quantity(
        ("nll",),
        "NLL/dim",
        "Mean negative log-density of the samples in nats per dimension under the exact mixture. No distance: samples that "
        "crowd into the modes have less than data.",
        lambda d: (d.judge.nll(d.x),),
        digits=3,
        panel=Panel("NLL/dim above that of exact draws", lambda m, floor: m.nll - floor.nll, "symlog"),
    ),
)
"""All of them, in the order of the columns."""
