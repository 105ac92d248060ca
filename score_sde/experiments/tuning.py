r"""Which solver, and which steps? Measured on the model itself, for each budget of evaluations.

Which solver is best at few evaluations depends on the network: one that has learned its data well is close to a Gaussian at
high noise, one that has not is not; noise predictions are rough where data predictions are smooth, and the other way round. So
latents are solved once to convergence, and candidates are judged by their distance from that. The error of a sample is the root
mean square of this distance over its coordinates, and the typical error of all samples (``paired``) is what is compared. A root
mean square over samples is ruled by a few latents between two basins, and a search for its minimum fits their noise.

1. Every family of solvers is tried on every standard grid, and on a grid of equalized local error: with F what a v-network
   predicts (see ``GaussianReference``), a formula with p nodes is wrong by about |F^(p)| h^(p+1) in a step of h in log-SNR, so
   equal errors mean steps in proportion to |F^(p)|^(-1/(p+1)). The derivatives are differences along the converged solution.
2. The steps of the best two are bent: each is multiplied by exp(b), b linear between a few knots along the grid, and the
   heights of the knots are found by the simplex method of Nelder and Mead (1965), which takes no gradients and forgives noise.
   Half-way it starts again from the best so far. Then every other family is tried on the bent steps.
3. The null hypothesis is the best known solver on a standard grid, to which nothing was fitted. It is found by both sets of
   latents, those of the search and those of the check. What the search gave is checked on latents that had no part in it. It is
   taken only where its gain over the null hypothesis is significant there, and its large errors are not much larger (``TAIL``);
   else the known solver is kept. The search itself counts an error as larger by as much as its tail is too long.

Each budget is searched by itself, so a choice does not depend on the other budgets.

Is the converged solution good enough for latents between basins? On 14 mixtures of many kinds its own error was, for half of
the latents, below 1/300 of the median error of the best peer at 20 evaluations, and for 1 in 100 it came up to 1/5 of that. The
typical error leaves these out.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_sde.inputs import require_batch, require_time, whole
from score_sde.paired import gain, tail, typical
from score_sde.progress import Progress
from score_sde.score import Score, draw_latents, event_of, moments_of
from score_sde.sdes import SDE
from score_sde.solvers import DEIS, DPMSolverPP, GaussianReference, SolverError, UniPC
from score_sde.solvers.fixed_steps import GridSolver
from score_sde.solvers.multistep import Multistep
from score_sde.solvers.time_grids import TIME_GRIDS, ExplicitGrid, TimeGrid
from score_sde.solvers.tuned import QUANTILES, Choice, Tuned
from score_sde.tensors import Condition, expand

KNOTS = 5
"""Knots of a bend; the last has height 0, since only the proportions of steps count."""

FINE = 200
"""Steps of the converged solution."""

KEPT = 8
"""Candidates that are measured on the whole pilot, besides as many standard ones."""

LEVEL = 0.05
"""The probability that the best standard is left although nothing is better: of a budget, whatever is checked for it."""

TAIL = 1.5
"""How much larger than those of the best standard the large errors (``tail``) of a choice may be."""

GRIDS = ("uniform", "quadratic", "log_snr", "edm", "cosine")


@dataclass(frozen=True)
class Candidate:
    """A family of solvers, the grid from which its steps come, and how they are bent."""

    family: GridSolver
    grid: str | TimeGrid
    bend: tuple[float, ...] = ()

    def solver(self, nfe: int, sde: SDE, t_from: float, t_to: float) -> GridSolver:
        """The solver of ``nfe`` evaluations."""
        solver = dataclasses.replace(self.family, grid=self.grid).with_budget(nfe)
        if self.bend or self.grid not in TIME_GRIDS:
            times = solver.times(sde, t_from, t_to)
            times = bent(times, sde, self.bend) if self.bend else times
            solver = dataclasses.replace(solver, grid=ExplicitGrid(tuple(times.tolist())))
        return solver


def bent(times: Tensor, sde: SDE, bend: Sequence[float]) -> Tensor:
    """``times`` with their steps in log-SNR multiplied by exp(b), b linear between the knots ``bend`` and 0 at the last."""
    log_snr = sde.log_snr(times)
    middle = (np.arange(len(times) - 1) + 0.5) / (len(times) - 1)
    heights = np.interp(middle, np.linspace(0, 1, len(bend) + 1), [*bend, 0.0])
    steps = log_snr.diff() * torch.from_numpy(np.exp(heights))
    whole = log_snr[-1] - log_snr[0]
    result = sde.inverse_log_snr(log_snr[0] + whole * torch.cat([steps.new_zeros(1), steps.cumsum(0) / steps.sum()]))
    result[0], result[-1] = times[0], times[-1]
    return result


@dataclass(frozen=True)
class EqualizedGrid(TimeGrid):
    """Equal shares of a density over log-SNR.

    Args:
        log_snr: where the density is known, rising.
        density: its values there.
    """

    log_snr: tuple[float, ...]
    density: tuple[float, ...]

    def times(self, sde: SDE, t_from: float, t_to: float, steps: int) -> Tensor:
        at, values = np.array(self.log_snr), np.array(self.density)
        reached = np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(at))])
        start, end = np.interp([float(sde.log_snr(t)) for t in (t_from, t_to)], at, reached)
        return sde.inverse_log_snr(torch.from_numpy(np.interp(np.linspace(start, end, steps + 1), reached, at)))


def families(score: Score, shape: Sequence[int]) -> list[Multistep]:
    """What is tried for events of ``shape``: known solvers first, then ours around the Gaussians that are known."""
    known: list[Multistep] = [DPMSolverPP(p=2), DEIS(p=2)]
    known += [UniPC(p=p, variant=variant, lower_order_first=p > 2) for p in (2, 3) for variant in ("bh1", "bh2")]
    moments = moments_of(score)
    fit = moments is not None and tuple(moments.mean.shape) == tuple(shape)
    references = ["data", "unit"] if fit else ["isotropic", "unit"]
    ours = [GaussianReference(reference=name, p=p, lower_order_first=p > 2) for name in references for p in (2, 3)]
    return [dataclasses.replace(family, lower_order_final=final) for family in (*known, *ours) for final in (False, True)]


def is_standard(candidate: Candidate) -> bool:
    """Whether a candidate is a known solver on a grid of the literature."""
    return candidate.grid in GRIDS and not candidate.bend and not isinstance(candidate.family, GaussianReference)


def tune(
    score: Score,
    shape: Sequence[int],
    budgets: Sequence[int],
    *,
    pilot: int = 128,
    trials: int = 60,
    seed: int = 0,
    cond: Tensor | None = None,
    t_end: float | None = None,
    earlier: Tuned | None = None,
    keep: Callable[[Choice], None] | None = None,
    progress: bool = False,
) -> Tuned:
    """Choose solver, order and time grid for each budget of evaluations.

    Costs about 400 evaluations of ``pilot`` samples and, for each budget, ``nfe * (trials + 85)``. More samples in the pilot
    make smaller gains significant. More trials find larger ones.

    Args:
        score: the score.
        shape: shape of one event, ``(*D)``.
        budgets: evaluations, each at least 2.
        pilot: latents on which candidates are measured, and as many others for the check; at least 8.
        trials: measurements of bent grids, per budget.
        seed: of the latents.
        cond: condition of the samples, ``(2 * pilot, ...)``, those of the search before those of the check.
        t_end: time at which sampling stops; by default the SDE's t_min.
        earlier: what was chosen before. It takes part in the check: another choice must have smaller typical errors there. The
            root mean square of a few samples may still become larger.
        keep: called with each choice as soon as it is made.
        progress: show a progress bar.

    Raises:
        ValueError: a number is out of range.
        SolverError: the converged solution is not finite, or no known solver gives finite samples within a budget.
    """
    budgets = sorted({whole("a number of evaluations", budget, 0) for budget in budgets})
    score.sde.require_ends()
    require_batch("a pilot", (2 * whole("pilot", pilot, 1), *shape), event_of(score))
    whole("trials", trials, 1)
    if not budgets or budgets[0] < 2:
        raise ValueError(f"give numbers of evaluations, each at least 2, got {budgets}")
    if pilot < 8 or trials < 10:
        raise ValueError(f"a choice needs a pilot of at least 8 samples and at least 10 trials, got {pilot} and {trials}")
    if t_end is not None:
        require_time("t_end", t_end, score.sde.t_min, score.sde.T, below=True)
    if cond is not None and len(cond) != 2 * pilot:
        raise ValueError(f"give conditions for 2 * pilot = {2 * pilot} samples, got {len(cond)}")
    with torch.no_grad(), Progress("tuning", 2 + len(budgets), unit="part", shown=progress) as bar:
        trial = Pilot(score, shape, pilot, seed, cond, t_end)
        bar.update(2)
        choices = []
        for nfe in budgets:
            bar.note(f"{nfe} evaluations")
            before = [Candidate(c.solver, c.solver.grid) for c in (earlier.choices if earlier else ()) if c.nfe == nfe]
            choices.append(_choose(trial, before, nfe, trials))
            if keep:
                keep(choices[-1])
            bar.update()
    return Tuned(tuple(choices))


class Pilot:
    """Latents with their converged solutions, half of them to choose by and half to check, and what F is like along the way.

    The two halves have streams of their own, so that no latent of a search is one of a check, whatever the pilots' sizes.
    """

    def __init__(self, score: Score, shape: Sequence[int], count: int, seed: int, cond: Tensor | None, t_end: float | None):
        self.score, self.sde, self.cond, self.count = score, score.sde, cond, count
        self.t_from, self.t_to = self.sde.T, self.sde.t_min if t_end is None else t_end
        draws = [draw_latents(score, (count, *shape), seed=seed, purpose=purpose) for purpose in ("tuning", "check of tuning")]
        self.latents = torch.cat(draws)
        self.families = families(score, shape)
        self.roughness = Roughness(score, 3)
        fine = UniPC(steps=FINE, p=3, lower_order_first=True)  # no evaluations between its equal steps
        self.fine = fine.solve(self.roughness, self.latents, self.t_from, self.t_to, cond=cond)

    def candidates(self) -> list[Candidate]:
        """Every family on every grid."""
        equalized = {p: self.roughness.grid(p) for p in (2, 3)}
        grids = lambda family: (*GRIDS, equalized[family.p])
        return [Candidate(f, grid) for f in self.families for grid in grids(f)]

    def errors(self, candidate: Candidate, nfe: int, rows: slice) -> np.ndarray:
        """The root mean square distance of each sample from its converged solution, infinite where the candidate fails."""
        cond, count = None if self.cond is None else self.cond[rows], len(self.latents[rows])
        try:
            solver = candidate.solver(nfe, self.sde, self.t_from, self.t_to)
        except ValueError:  # no step within the budget, or times so close that they coincide
            return np.full(count, math.inf)
        try:
            found = solver.solve(self.score, self.latents[rows], self.t_from, self.t_to, cond=cond)
        except SolverError:
            return np.full(count, math.inf)
        return (found - self.fine[rows]).double().flatten(1).square().mean(1).sqrt().cpu().numpy()

    def typical(self, candidate: Candidate, nfe: int, rows: slice) -> float:
        """``typical`` of its errors."""
        return typical(self.errors(candidate, nfe, rows))

    @property
    def few(self) -> slice:
        return slice(0, max(8, self.count // 4))

    @property
    def all(self) -> slice:
        return slice(0, self.count)

    @property
    def fresh(self) -> slice:
        return slice(self.count, 2 * self.count)


class Roughness:
    """A score that notes how large the differences of F are along equal steps in log-SNR: orders 1 to ``orders``.

    F = tan(theta) (z + r score) with z = x / r, r = sqrt(alpha^2 + sigma^2), tan(theta) = sigma / alpha.
    """

    def __init__(self, score: Score, orders: int):
        self.score, self.sde, self.orders = score, score.sde, orders
        self.last: list[Tensor] = []
        self.log_snr: list[float] = []
        self.sizes: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        score = self.score(x, t, cond)
        alpha, sigma = (expand(value, x) for value in (self.sde.alpha(t), self.sde.sigma(t)))
        scale = torch.hypot(alpha, sigma)
        differences = [sigma / alpha * (x / scale + scale * score)]
        for earlier in self.last[: self.orders]:
            differences.append(differences[-1] - earlier)
        self.last = differences
        if len(differences) > self.orders:
            self.log_snr.append(float(self.sde.log_snr(t[0].double())))
            self.sizes.append(torch.stack([d.double().square().mean().sqrt() for d in differences[1:]]))
        return score

    def grid(self, p: int) -> EqualizedGrid:
        """The grid of equalized local error of formulas with ``p`` nodes."""
        order = np.argsort(self.log_snr)
        sizes = torch.stack(self.sizes).cpu().numpy()[order, p - 1]
        width = max(1, len(sizes) // 20)
        padded = np.pad(sizes, width, mode="edge")
        smooth = np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), mode="valid")
        density = np.maximum(smooth, 1e-3 * smooth.max()) ** (1 / (p + 1))
        return EqualizedGrid(tuple(np.array(self.log_snr)[order].tolist()), tuple(density.tolist()))


def _choose(pilot: Pilot, before: list[Candidate], nfe: int, trials: int) -> Choice:
    """The choice for a budget; what was chosen ``before`` is checked too."""
    ranked = sorted(pilot.candidates(), key=lambda c: pilot.typical(c, nfe, pilot.few))
    standards = [c for c in ranked if is_standard(c)][:KEPT]
    kept = list(dict.fromkeys([*ranked[:KEPT], *standards]))
    found = {c: pilot.errors(c, nfe, pilot.all) for c in kept}
    null = min((found[c] for c in standards), key=typical)
    if not np.isfinite(null).all():
        raise SolverError(f"no known solver gave finite samples in {nfe} evaluations: give more, or check the model")

    def badness(candidate: Candidate) -> float:
        errors = found[candidate] if candidate in found else pilot.errors(candidate, nfe, pilot.all)
        return typical(errors) * max(1.0, tail(errors, null) / TAIL)

    ranked = sorted(kept, key=badness)
    best, least = ranked[0], badness(ranked[0])
    close = [c for c in ranked if _kind(c) != _kind(best) and badness(c) < 1.3 * least]
    searched = [_bend(best, badness, 2 * trials // 3 if close else trials)]
    searched += [_bend(second, badness, trials // 3) for second in close[:1]]
    searched += sorted((dataclasses.replace(searched[0], family=family) for family in pilot.families), key=badness)[:2]

    every = {c: np.concatenate([found[c], pilot.errors(c, nfe, pilot.fresh)]) for c in standards}
    known = min(standards, key=lambda c: typical(every[c]))
    if not np.isfinite(every[known]).all():
        raise SolverError(f"no known solver gave finite samples in {nfe} evaluations: give more, or check the model")
    tested = [c for c in dict.fromkeys([*searched, *before, best]) if c != known]
    every |= {c: np.concatenate([pilot.errors(c, nfe, rows) for rows in (pilot.all, pilot.fresh)]) for c in tested}
    check = {c: errors[pilot.fresh] for c, errors in every.items()}
    better = [c for c in tested if gain(check[c], check[known]).p_value < LEVEL / len(tested)]
    sound = [c for c in better if tail(every[c], every[known]) <= TAIL]
    winner = min([known, *sound], key=lambda c: typical(check[c]))
    solver, rival = (c.solver(nfe, pilot.sde, pilot.t_from, pilot.t_to) for c in (winner, known))
    rms, spread = zip(*(_figures(check[c]) for c in (winner, known)), strict=True)
    return Choice(nfe, solver, rms[0], rms[1], rival, *spread)


def _figures(errors: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """The root mean square of the errors of samples, and their quantiles."""
    return float(np.sqrt(np.mean(errors**2))), tuple(np.quantile(errors, QUANTILES).tolist())


def _kind(candidate: Candidate) -> tuple:
    return type(candidate.family), *(getattr(candidate.family, name, "") for name in ("p", "reference"))


def _bend(start: Candidate, badness: Callable[[Candidate], float], trials: int) -> Candidate:
    """``start`` with its steps bent to the smallest ``badness``; half-way a fresh simplex, as the first one shrinks."""
    from scipy.optimize import minimize  # here: it takes long to import

    def of_bend(bend: np.ndarray) -> float:
        return badness(dataclasses.replace(start, bend=tuple(bend.tolist())))

    best = np.array(start.bend or [0.0] * (KNOTS - 1))
    for share in (trials - trials // 2, trials // 2):
        simplex = np.vstack([best, *(best + 0.6 * direction for direction in np.eye(len(best)))])
        best = minimize(of_bend, best, method="Nelder-Mead", options={"maxfev": share, "initial_simplex": simplex}).x
    return dataclasses.replace(start, bend=tuple(best.tolist()))
