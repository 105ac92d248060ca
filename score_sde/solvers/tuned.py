"""A solver for each budget, chosen by measurement (``score_sde.experiments.tuning``) and used by name from then on."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.base import Observer, Solver
from score_sde.solvers.fixed_steps import GridSolver
from score_sde.solvers.time_grids import ExplicitGrid
from score_sde.tensors import SampleNoise

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of the errors of samples that are kept with a choice."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a budget.

    ``solver`` makes ``nfe`` evaluations. ``rival`` is the best known solver on a standard grid; where nothing was
    significantly better, it is the solver itself. The error of a sample is its root mean square distance, over its coordinates,
    from the converged solution. It was measured on latents that had no part in the search: ``error`` and ``standard`` are the
    root mean squares over samples of the solver and of its rival, ``quantiles`` and ``standard_quantiles`` the errors at
    ``QUANTILES``. A few latents can rule the root mean square, but not the median. The best of a few solvers was taken there,
    so on others its errors may be slightly larger.

    Raises:
        ValueError: there is not one error for each of ``QUANTILES``; none at all are allowed, as older files have it.
    """

    nfe: int
    solver: GridSolver
    error: float
    standard: float
    rival: GridSolver
    quantiles: tuple[float, ...] = ()
    standard_quantiles: tuple[float, ...] = ()

    def __post_init__(self):
        if {len(self.quantiles), len(self.standard_quantiles)} not in ({len(QUANTILES)}, {0}):
            raise ValueError(f"a choice has errors at the quantiles {QUANTILES} of both solvers, or at none")


class NoChoice(ValueError):
    """Nothing was tuned for as few as ``nfe`` evaluations; the fewest are ``least``."""

    def __init__(self, nfe: int, least: int):
        super().__init__(f"tuned for {least} evaluations or more, got {nfe}")
        self.nfe, self.least = nfe, least


@dataclass(frozen=True)
class Tuned(Solver):
    """Choices for several budgets, of which the largest within ``nfe`` evaluations is used, by default the largest.

    Args:
        choices: one for each budget.
        nfe: the evaluations to stay within.

    Raises:
        NoChoice: there is no choice within ``nfe`` evaluations.
    """

    choices: tuple[Choice, ...]
    nfe: int | None = None

    def __post_init__(self):
        if not self.choices:
            raise ValueError("there is nothing to choose from: give at least one choice")
        _ = self.choice

    @property
    def choice(self) -> Choice:
        """The choice in use."""
        within = [choice for choice in self.choices if self.nfe is None or choice.nfe <= self.nfe]
        if self.nfe is not None and not within:
            raise NoChoice(self.nfe, min(choice.nfe for choice in self.choices))
        return max(within, key=lambda choice: choice.nfe)

    @property
    def stochastic(self) -> bool:
        return self.choice.solver.stochastic

    @property
    def order(self) -> int | None:
        return self.choice.solver.order

    def with_budget(self, nfe: int) -> Self:
        within = dataclasses.replace(self, nfe=nfe)
        return dataclasses.replace(self, nfe=within.choice.nfe)

    def follow(
        self, score: BoundScore, x: Tensor, t_from: float, t_to: float, noise: SampleNoise, observe: Observer | None
    ) -> Tensor:
        return self.choice.solver.follow(score, x, t_from, t_to, noise, observe)

    def __str__(self) -> str:
        return f"Tuned({self.choice.nfe} evaluations: {_words(self.choice.solver)})"

    def table(self) -> str:
        """The choices as text for a terminal, each above the best known solver on a standard grid."""
        heading = "".join(f"{f'{quantile:.0%}' if quantile != 0.5 else 'median':>10}" for quantile in QUANTILES)
        lines = [f"{'evaluations':>13}{heading}{'rms':>10}   solver"]
        for c in self.choices:
            lines.append(_line(str(c.nfe), c.quantiles, c.error, _words(c.solver)))
            same = "the same: nothing was better" if c.rival == c.solver else _words(c.rival)
            lines.append(_line("best standard", c.standard_quantiles, c.standard, same))
        return "\n".join(lines)


def _line(name: str, quantiles: Sequence[float], rms: float, words: str) -> str:
    shown = "".join(f"{value:>10.3g}" for value in quantiles) or f"{'-':>10}" * len(QUANTILES)
    return f"{name:>13}{shown}{rms:>10.3g}   {words}"


def _words(solver: GridSolver) -> str:
    """A solver by what was chosen of it; steps of its own are long."""
    shown = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver) if f.name not in ("steps", "grid")}
    words = ", ".join(f"{key}={value}" for key, value in shown.items() if value is not False)
    return f"{type(solver).__name__}({words}), {f'{solver.grid} grid' if isinstance(solver.grid, str) else 'steps of its own'}"


def as_options(solver: GridSolver, table: Mapping[str, Any]) -> dict[str, Any]:
    """A solver as its name in ``table`` and the options that build it, plain enough for JSON.

    Raises:
        ValueError: an option is neither a number nor a word.
    """
    name = next(key for key, builder in table.items() if builder is type(solver))
    options = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    if isinstance(solver.grid, ExplicitGrid):
        options["grid"] = ",".join(map(repr, solver.grid.nodes))
    for key, value in options.items():
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{type(solver).__name__} cannot be saved: its {key} is a {type(value).__name__}")
    return {"name": name, name: options}
