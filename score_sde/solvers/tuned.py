"""A solver for each budget, chosen by measurement (``score_sde.tuning``) and used by name from then on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from score_sde.solvers.base import GridSolver, Solver
from score_sde.solvers.time_grids import ExplicitGrid


@dataclass(frozen=True)
class Choice:
    """What was chosen for a budget.

    ``nfe`` evaluations by ``solver``, whose root mean square ``error`` from the converged solution was measured on latents
    that had no part in the search, as was that of the best among known solvers on standard grids, ``standard``, which is
    ``rival``. The best of a few was taken there, so on others ``error`` may be slightly larger.
    """

    nfe: int
    solver: GridSolver
    error: float
    standard: float
    rival: GridSolver


@dataclass(frozen=True)
class Tuned(Solver):
    """Choices for several budgets, of which the largest within ``nfe`` evaluations is used, by default the largest.

    Args:
        choices: one for each budget.
        nfe: the evaluations to stay within.
        more: the command that makes further choices, for the message where there are none.

    Raises:
        ValueError: there is no choice within ``nfe`` evaluations.
    """

    choices: tuple[Choice, ...]
    nfe: int | None = None
    more: str = field(default="score-sde tune", compare=False, repr=False)

    def __post_init__(self):
        if not self.choices:
            raise ValueError("there is nothing to choose from: give at least one choice")
        _ = self.choice

    @property
    def choice(self) -> Choice:
        """The choice in use."""
        within = [choice for choice in self.choices if self.nfe is None or choice.nfe <= self.nfe]
        if not within:
            raise ValueError(
                f"tuned for {min(c.nfe for c in self.choices)} evaluations or more, got {self.nfe}: "
                f"{self.more} --nfe={self.nfe} adds them"
            )
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

    def solve(self, score, x, t_from, t_to, *, cond=None, noise=None, observe=None):
        return self.choice.solver.solve(score, x, t_from, t_to, cond=cond, noise=noise, observe=observe)

    def __str__(self) -> str:
        return f"Tuned({self.choice.nfe} evaluations: {_words(self.choice.solver)})"

    def table(self) -> str:
        """The choices as text for a terminal."""
        lines = [f"{'evaluations':>11}{'error':>11}{'best standard':>15}   solver"]
        lines += [f"{c.nfe:>11}{c.error:>11.3g}{c.standard:>15.3g}   {_words(c.solver)}" for c in self.choices]
        return "\n".join(lines)


def _words(solver: GridSolver) -> str:
    """A solver by what was chosen of it; its grid and steps are long."""
    shown = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver) if f.name not in ("steps", "grid")}
    return f"{type(solver).__name__}({', '.join(f'{key}={value}' for key, value in shown.items() if value is not False)})"


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
