"""Solvers side by side: the same latents, counted evaluations, time in and outside the network, distances to data, one table.

Every solver starts from the same x_T, and is judged by the same held-out data. What no sampler can be expected to beat is in
the table too: other data, as much of it as there are samples, judged in the same way. Deterministic solvers approximate one
solution, that of the probability-flow ODE from these latents, so their error is measured as well.

The samples are of p at t_min: data plus noise of standard deviation sigma(t_min), which no solver is to blame for.
"""

import csv
import dataclasses
import io
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from score_sde.composition import around, leaves
from score_sde.exact import MixtureScore
from score_sde.experiments.quantities import (
    NEIGHBOUR,
    QUANTITIES,
    Drawn,
    Judge,
    Measurement,
    Quantity,
    root_mean_square,
)
from score_sde.files import write_text
from score_sde.progress import Progress
from score_sde.score import Score, WrappedScore, draw_latents
from score_sde.solvers import SOLVERS, ProbabilityFlow, Solver, SolverError
from score_sde.tensors import Condition

CONVERGED, DATA = "converged ODE", "data against data"
"""The names of the two rows that are not solvers."""

AUDITED = 32
"""The number of samples on which the converged solution is solved again, to a tenth of the tolerance."""


@dataclass(frozen=True)
class Comparison:
    """All measurements, the two that they are to be compared with, and the samples drawn.

    ``floor`` is the measurement of other data; ``converged`` that of the converged ODE, whose own ``error`` is its difference
    from a solution to a tenth of the tolerance. ``samples`` holds the samples by solver and budget, on the CPU, first those of
    the converged ODE; ``data`` is what they were judged by; ``protocol`` says in a few sentences how.
    """

    measurements: tuple[Measurement, ...]
    converged: Measurement
    floor: Measurement
    samples: Mapping[tuple[str, int], Tensor]
    data: Tensor
    protocol: str

    @property
    def rows(self) -> tuple[Measurement, ...]:
        """All measurements, the solvers' first."""
        return (*self.measurements, self.converged, self.floor)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The columns of a table: quantities that apply to at least one of ``rows``."""
        return tuple(quantity for quantity in QUANTITIES if any(map(quantity.cell, self.rows)))

    def table(self) -> str:
        """The measurements as text for a terminal."""
        shown = self.quantities
        lines = [["solver", *(quantity.heading for quantity in shown)]]
        lines += [[m.solver, *(quantity.cell(m) for quantity in shown)] for m in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def save_csv(self, path: Path) -> None:
        """Write ``rows`` as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(m) for m in self.rows)
        write_text(path, text.getvalue())


# measuring


@dataclass
class Clock:
    """Seconds spent in a score, and when the present evaluation began."""

    seconds: float = 0.0
    start: float = 0.0


@dataclass(frozen=True, eq=False)
class TimedScore(WrappedScore):
    """A score whose calls are timed; on a GPU each call is waited for, which costs the overlap with what follows."""

    clock: Clock

    def told(self, x: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        _wait(x.device)
        self.clock.start = time.perf_counter()
        return t, cond

    def changed(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        _wait(x.device)
        self.clock.seconds += time.perf_counter() - self.clock.start
        return score


def timed(score: Score, clock: Clock) -> Score:
    """``score`` with the calls of its leaves timed: what stands above them is the solver's or the guidance's overhead."""
    return around(score, lambda leaf: TimedScore(leaf, clock))[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _floor(judge: Judge, other: Tensor | None, samples: int, seed: int) -> Measurement:
    """Other data judged as samples are; where there is none, a part of the data is judged by the rest."""
    if other is None:
        split = _split(samples, judge.data)
        drawn = Drawn(judge.data[:split], Judge(judge.data[split:], None, features=judge.features, seed=seed))
    else:
        drawn = Drawn(other, judge)
    # data is not noised to the end time
    return dataclasses.replace(drawn.measured(DATA, 0), nll=judge.entropy(seed=seed))


def _split(samples: int, data: Tensor) -> int:
    """How much of the data is judged by the rest of it."""
    return min(samples, len(data) // 2)


def stand_in(solver: Solver, used: Solver) -> str | None:
    """The name of the method that took the place of ``solver``'s to keep to a budget; None where none did."""
    if type(used) is not type(solver):
        return next((name for name, builder in SOLVERS.items() if builder is type(used)), type(used).__name__)
    method = getattr(used, "method", None)
    return None if method == getattr(solver, "method", None) else method


def compare(
    score: Score,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    data: Tensor,
    *,
    other: Tensor | None = None,
    samples: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Sample with each solver at each budget of evaluations, from the same latents.

    A solver that cannot take a step within a budget, or whose state stops being finite, is left out there with a warning.

    Args:
        score: the score.
        solvers: by the names under which they are reported; where another method takes the place of one that cannot keep to a
            budget, its name is added.
        budgets: evaluations.
        data: held-out data in model coordinates, ``(N, *D)``, N at least 4.
        other: more data, ``(M, *D)``, of which as much as there are samples is judged as they are, for what a perfect
            sampler would have; by default a part of ``data`` is judged against the rest of it.
        samples: samples per solver and budget; with fewer than ``quantities.FEWEST``, precision and recall are NaN.
        seed: of latents, noise and resamples.
        progress: show a progress bar.

    Raises:
        ValueError: there are fewer than 2 samples or 4 data points, or a budget is below 1 or too small for every solver.
        SolverError: the ODE could not be solved.
    """
    if samples < 2 or len(data) < 4:
        raise ValueError(f"a comparison needs at least 2 samples and 4 data points, got {samples} and {len(data)}")
    if other is not None and len(other) < 2:
        raise ValueError(f"the other data that is judged as samples are must be at least 2 points, got {len(other)}")
    if min(budgets, default=0) < 1:
        raise ValueError(f"budgets must be positive numbers of evaluations, got {list(budgets)}")
    x_T, clock = draw_latents(score, (samples, *data.shape[1:]), seed=seed), Clock()
    inner, timed_score = leaves(score), timed(score, clock)
    mixture = inner[0] if len(inner) == 1 and isinstance(inner[0], MixtureScore) else None
    judge = Judge(data, mixture, seed=seed)
    other = None if other is None else other[:samples]

    def drawn_by(solver: Solver, solution: Tensor | None = None, *, bar: bool = False) -> Drawn:
        _wait(x_T.device)
        clock.seconds, start = 0.0, time.perf_counter()
        result = solver.sample(timed_score, x_T=x_T, seed=seed, progress=bar)
        _wait(x_T.device)
        seconds = time.perf_counter() - start
        return Drawn(result.x, judge, result.nfe, seconds, seconds - clock.seconds, solution)

    exact = ProbabilityFlow(method="rk45", rtol=1e-5, atol=1e-5)  # steps for each sample: some may be solved again alone
    best = drawn_by(exact, bar=progress)
    solution, converged = best.x, best.measured(CONVERGED, best.nfe, str(exact))
    converged = dataclasses.replace(converged, error=_audit(exact, score, x_T, solution))
    found, drawn, left_out, last = [], {(CONVERGED, best.nfe): solution.cpu()}, [], None
    pairs = [(name, budget) for name in solvers for budget in budgets]
    with Progress("comparing", len(pairs), unit="run", shown=progress) as bar:
        for name, budget in bar.over(pairs):
            try:
                solver = solvers[name].with_budget(budget)
            except ValueError as reason:
                left_out.append(f"{name} is left out at {budget} evaluations: {reason}")
                continue
            if other_method := stand_in(solvers[name], solver):
                name = f"{name} ({other_method})"
            if last and last[0] == (name, solver):  # no more steps than at the budget before
                found.append(dataclasses.replace(found[-1], budget=budget))
                drawn[name, budget] = drawn[name, last[1]]
                continue
            try:
                new = drawn_by(solver, None if solver.stochastic else solution)
                found.append(new.measured(name, budget, str(solver)))
            except SolverError as reason:
                left_out.append(f"{name} is left out at {budget} evaluations: {reason}")
                continue
            drawn[name, budget], last = new.x.cpu(), ((name, solver), budget)
    if not found:
        raise ValueError(f"none of {', '.join(solvers)} got through within {max(budgets)} evaluations: {left_out[0]}")
    for reason in left_out:
        warnings.warn(reason, stacklevel=2)
    floor = _floor(judge, other, samples, seed)
    protocol = _protocol(samples, seed, data, other, exact, x_T)
    return Comparison(tuple(found), converged, floor, drawn, data, protocol)


def _audit(solver: ProbabilityFlow, score: Score, x_T: Tensor, solution: Tensor) -> float:
    """How far the first samples are from a solution to a tenth of the tolerance; NaN where precision does not reach it."""
    try:
        return root_mean_square(solver.finer().sample(score, x_T=x_T[:AUDITED]).x - solution[:AUDITED])
    except SolverError:
        return math.nan


def _protocol(samples: int, seed: int, data: Tensor, other: Tensor | None, solver: ProbabilityFlow, x_T: Tensor) -> str:
    """What a reader must know to repeat the comparison."""
    split = _split(samples, data)
    floor = (
        f"{len(other)} other data points, judged like samples"
        if other is not None
        else f"{split} of the held-out data points, judged by the other {len(data) - split}"
    )
    return (
        f"{samples} samples per setting, seed {seed}, from the same latents, against {len(data)} held-out data points; "
        f"{DATA}: {floor}. Evaluations are counted calls of the network with the whole batch; overhead is the time outside "
        f"of it, on {x_T.device.type}. Distances are in model coordinates. Precision and recall: k = {NEIGHBOUR}, "
        f"{min(samples, len(data))} points of each. {CONVERGED}: {solver.describe()}; its error is the difference from a tenth "
        f"of the tolerance, on {min(AUDITED, samples)} samples."
    )
