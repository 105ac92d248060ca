"""Solvers side by side: the same latents, counted evaluations, one table."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from score_sde.files import write_text
from score_sde.metrics import sliced_wasserstein
from score_sde.model import Score
from score_sde.solvers import ProbabilityFlow, Solver


@dataclass(frozen=True)
class Measurement:
    """One solver at one budget.

    ``nfe`` evaluations were counted, in ``seconds``. ``distance`` is the sliced Wasserstein distance to the data in model
    coordinates; ``error`` the root mean square difference from the converged ODE solution at the same latents, for
    deterministic solvers, else NaN.
    """

    solver: str
    budget: int
    nfe: int
    seconds: float
    distance: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """All measurements, the distance between data and data that no sampler can be expected to beat, and the samples drawn."""

    measurements: tuple[Measurement, ...]
    floor: float
    samples: Mapping[tuple[str, int], Tensor]

    def table(self) -> str:
        """The measurements as text for a terminal."""
        lines = [f"{'solver':<18}{'evaluations':>12}{'seconds':>10}{'distance':>11}{'ODE error':>11}"]
        for m in self.measurements:
            error = "" if math.isnan(m.error) else f"{m.error:.4f}"
            lines.append(f"{m.solver:<18}{m.nfe:>12}{m.seconds:>10.2f}{m.distance:>11.4f}{error:>11}")
        lines.append(f"{'data against data':<18}{'':>22}{self.floor:>11.4f}")
        return "\n".join(lines)

    def save_csv(self, path: Path) -> None:
        """Write the measurements as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(m) for m in self.measurements)
        write_text(path, text.getvalue())


def compare(
    score: Score,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    data: Tensor,
    *,
    samples: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Sample with each solver at each budget of evaluations, from the same latents.

    Args:
        score: the score.
        solvers: by the names under which they are reported.
        budgets: evaluations; one that is too small for a solver is left out for it.
        data: held-out data in model coordinates, ``(N, *D)``, N at least 2.
        samples: samples per solver and budget.
        seed: of latents and noise.
        progress: show a progress bar.

    Raises:
        ValueError: there are fewer than two samples or data points, or a budget is below 1 or too small for every solver.
    """
    if samples < 2 or len(data) < 2:
        raise ValueError(f"a comparison needs at least 2 samples and 2 data points, got {samples} and {len(data)}")
    if min(budgets, default=0) < 1:
        raise ValueError(f"budgets must be positive numbers of evaluations, got {list(budgets)}")
    shape = (samples, *data.shape[1:])
    converged = ProbabilityFlow(rtol=1e-5, atol=1e-5).sample(score, shape, seed=seed, progress=progress)
    measured, drawn, left_out = [], {}, []
    pairs = [(name, budget) for name in solvers for budget in budgets]
    for name, budget in tqdm(pairs, desc="comparing", unit="run", disable=not progress):
        try:
            solver = solvers[name].with_budget(budget)
        except ValueError as error:
            left_out.append(f"{name} is left out at {budget} evaluations: {error}")
            continue
        result = solver.sample(score, shape, seed=seed)
        error = math.nan if solver.stochastic else (result.x - converged.x).square().mean().sqrt().item()
        measured.append(Measurement(name, budget, result.nfe, result.seconds, sliced_wasserstein(result.x, data), error))
        drawn[name, budget] = result.x
    if not measured:
        raise ValueError(f"none of {', '.join(solvers)} can take a step within {max(budgets)} evaluations")
    for reason in left_out:
        warnings.warn(reason, stacklevel=2)
    half = len(data) // 2
    floor = sliced_wasserstein(data[:half], data[half:])
    return Comparison(tuple(measured), floor, {("converged ODE", converged.nfe): converged.x, **drawn})
