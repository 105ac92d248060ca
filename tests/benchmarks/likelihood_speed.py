"""What do bits/dim of a trained model cost, at a given error? Several ways to solve the same ODE.

    python tests/benchmarks/likelihood_speed.py --workdir=RUN [--data=IMAGES.npy] [--images=64] [--bound=0.004] [--quick]

All of them see the same images, the same points of uniform dequantization and one and the same probe for each image, so that
the values differ by the solver's error alone. It is measured against converged values: dopri5 at rtol = atol = 1e-6, a
thousand evaluations.

    published     the protocol behind most published figures (Song et al. 2021, Appendix D.2; rtol = atol = 1e-5), written from
                  that description: scipy's RK45 on the whole batch and its log p as one vector of float64, and at each
                  evaluation one pass of the network for the drift and another one, with its vector-Jacobian product, for the
                  divergence
    dopri5        ``ProbabilityFlow(method="dopri5")``: one pass gives both; a batch shares its steps
    rk45          ``ProbabilityFlow(method="rk45")``: the same with steps for each sample
    dual          ``DualWeighted``, at its default tolerance
    chosen        the ``DualWeighted`` that ``bits_per_dim(target_error=...)`` chooses for the bound by 8 other images, a pilot

Errors are root mean square, mean and largest over the images, in bits/dim. The cost of an image is the number of network
forwards plus that of vector-Jacobian products, by the count of what was computed: a sample that has arrived before its batch
still counts. Of one-pass solvers (dopri5, rk45) and of dual-weighted ones (dual, chosen) the cheapest whose RMS error is within
the bound are compared. Their times are medians of three runs each on a quarter of the images, interleaved; the published
protocol, which is long, is timed once among them. The seconds of the first table are of single runs.

The images are the first ones of IMAGES.npy, integers ``(N, *D)``, or of the run's own test split. Those that follow are the
pilot's; where none do, it takes the run's training data. Converged values of 64 MNIST images and one small model lie beside
this script, and are used for nothing else; for other models or images they are computed, which takes as long as the published
protocol, and kept in the file that --converged names.
"""

import argparse
import hashlib
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from score_sde import ProbabilityFlow, ScoreModel, load, log_likelihood
from score_sde.checkpoint import CheckpointError
from score_sde.data import DataError, load_array, read
from score_sde.divergence import GivenProbes, Hutchinson
from score_sde.likelihood.accuracy import choose_solver
from score_sde.likelihood.dequantization import uniform
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.evaluation import Estimator, Values, weights_digest
from score_sde.run import Run, RunError, build_data
from score_sde.score import Counter
from score_sde.solvers.transport import Transport
from score_sde.tensors import SampleNoise, batch_time, sum_event

TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)
STEPS = (16, 18, 20, 22, 24, 28, 32, 40, 48)
QUICK_TOLERANCES, QUICK_STEPS = (1e-2, 1e-3), (16, 24, 32)
PUBLISHED, CONVERGED, PILOT, REPEATS = 1e-5, 1e-6, 8, 3
STORED = Path(__file__).with_name("likelihood_converged.npz")


@dataclass(frozen=True, eq=False)
class Points:
    """A model, points in its coordinates ``(B, *D)`` and a probe for each."""

    model: ScoreModel
    x: Tensor
    probe: Tensor

    def bits(self, log_prob: Tensor) -> Tensor:
        """Log-densities in nats ``(B,)`` as bits per dimension."""
        spec = self.model.data
        return -(log_prob.double() + spec.log_det) / (spec.dim * math.log(2))

    def first(self, count: int) -> "Points":
        """The first ``count`` of them."""
        return Points(self.model, self.x[:count], self.probe[:count])


@dataclass(frozen=True, eq=False)
class Outcome:
    """Bits per dimension ``(B,)``; forwards and vector-Jacobian products of an image, and the seconds of all."""

    bits: Tensor
    forwards: float
    vjps: float
    seconds: float

    @property
    def cost(self) -> float:
        return self.forwards + self.vjps


@dataclass(frozen=True)
class Published:
    """The published protocol: scipy's RK45, and two passes of the network in each evaluation."""

    tolerance: float

    def __call__(self, points: Points) -> Outcome:
        start, counter = time.perf_counter(), Counter()
        score, sde, x, batch = points.model, points.model.sde, points.x, len(points.x)

        def drift(x: Tensor, t: float) -> Tensor:
            times = batch_time(t, x)
            counter.samples += batch
            return sde.probability_flow(x, times, score(x, times))

        def divergence(x: Tensor, t: float) -> Tensor:
            x = x.requires_grad_()
            with torch.enable_grad():
                value = (drift(x, t) * points.probe).sum()
            (product,) = torch.autograd.grad(value, x)
            counter.vjps += batch
            return sum_event(product * points.probe)

        def velocity(t: float, state: np.ndarray) -> np.ndarray:
            at = torch.from_numpy(state[:-batch]).to(x.dtype).reshape(x.shape)
            with torch.no_grad():
                parts = drift(at, t).flatten(), divergence(at, t)
            return torch.cat(parts).double().numpy()

        state = np.concatenate([x.double().flatten().numpy(), np.zeros(batch)])
        tolerances = {"rtol": self.tolerance, "atol": self.tolerance}
        found = solve_ivp(velocity, (sde.t_min, sde.T), state, method="RK45", **tolerances)
        if not found.success:
            raise RuntimeError(f"solve_ivp did not reach the end: {found.message}")
        end = torch.from_numpy(found.y[:, -1])
        log_prob = sde.prior_log_prob(end[:-batch].to(x.dtype).reshape(x.shape)).double() + end[-batch:]
        seconds = time.perf_counter() - start
        return Outcome(points.bits(log_prob), counter.samples / batch, counter.vjps / batch, seconds)


@dataclass(frozen=True)
class OnePass:
    """A solver of the package."""

    solver: Transport

    def __call__(self, points: Points) -> Outcome:
        start = time.perf_counter()
        found = log_likelihood(points.model, points.x, solver=self.solver, divergence=GivenProbes(points.probe[None]))
        return Outcome(points.bits(found.log_prob), found.nfe, found.vjps, time.perf_counter() - start)


Contender = Published | OnePass


def explicit(method: str, tolerance: float) -> OnePass:
    """A Runge-Kutta method at a tolerance."""
    return OnePass(ProbabilityFlow(method=method, rtol=tolerance, atol=tolerance))


def draw(model: ScoreModel, images: Tensor) -> Points:
    """The points and probes of ``images`` ``(B, *D)``: those of sample i depend on i alone."""
    u = SampleNoise(0, images.shape, purpose="dequantization").uniform()
    return Points(model, model.data.dequantized(images.float(), u), SampleNoise(0, images.shape, purpose="probes").rademacher())


def identity(model: ScoreModel, images: Tensor) -> dict[str, str]:
    """What converged values belong to: digests of the images, as bytes, of the random numbers and of the weights."""
    numbers = [SampleNoise(0, images.shape, purpose=purpose).uniform() for purpose in ("dequantization", "probes")]
    return {
        "images": hashlib.sha256(images.to(torch.uint8).numpy().tobytes()).hexdigest(),
        "noise": hashlib.sha256(torch.stack(numbers).numpy().tobytes()).hexdigest(),
        "weights": str(weights_digest(model)),
    }


def stored(file: Path, model: ScoreModel, values: Tensor, count: int) -> Tensor | None:
    """Converged values of the first ``count`` of ``values``, if ``file`` has those of this model and these images."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as saved:
        known = {name: saved[name] for name in saved.files}
    bits = torch.from_numpy(known.pop("bits"))
    same = {name: str(value) for name, value in known.items()} == identity(model, values[: len(bits)])
    return bits[:count] if same and count <= len(bits) else None


def converged(points: Points, values: Tensor, files: Sequence[Path], keep: Path | None) -> Tensor:
    """Converged bits per dimension of ``points``, those of the first ``values``: known ones, or else computed and kept."""
    count = len(points.x)
    for file in files:
        if (bits := stored(file, points.model, values, count)) is not None:
            print(f"Converged values of {count} images: {file.name}", flush=True)
            return bits
    found = explicit("dopri5", CONVERGED)(points)
    print(f"Converged values of {count} images: {found.forwards:.0f} forwards each, {found.seconds:.0f} s", flush=True)
    if keep is not None:
        np.savez(keep, bits=found.bits.numpy(), **identity(points.model, values[:count]))
    return found.bits


@dataclass(frozen=True)
class Chosen:
    """A solver that a pilot chose, and what the whole pilot took: forwards, vector-Jacobian products and seconds."""

    solver: Transport
    forwards: float
    vjps: float
    seconds: float


def choose(model: ScoreModel, others: Tensor, place: int, bound: float) -> Chosen:
    """What ``bits_per_dim(target_error=bound)`` chooses by a pilot of ``others``, which lie at ``place`` of the data."""
    spent: list[Values] = []

    def pilot(solver: DualWeighted) -> Values:
        estimator = Estimator(
            model=model,
            data=model.data,
            dequantization=uniform,
            importance_samples=1,
            truncation=False,
            divergence=Hutchinson(1),
            solver=solver,
            seed=0,
            probe_seed=0,
        )
        spent.append(estimator(others, range(place, place + len(others)), None))
        return spent[-1]

    start = time.perf_counter()
    solver = choose_solver(pilot, bound)
    seconds = time.perf_counter() - start
    forwards, vjps = (float(torch.cat([getattr(values, name) for values in spent]).sum()) for name in ("nfe", "vjps"))
    return Chosen(solver, forwards, vjps, seconds)


def row(*cells: object) -> None:
    """Print a line of a markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def table(*header: str) -> None:
    """Begin a markdown table."""
    print()
    row(*header)
    print("|" + "---|" * len(header), flush=True)


def errors(outcome: Outcome, truth: Tensor) -> tuple[float, float, float]:
    """Root mean square, mean and largest error."""
    error = outcome.bits - truth
    return float(error.square().mean().sqrt()), float(error.mean()), float(error.abs().max())


def compare(contenders: Sequence[tuple[str, str, Contender]], points: Points, truth: Tensor) -> list[Outcome]:
    """Run each and print its errors and cost."""
    table("solver", "setting", "RMS error", "mean", "largest", "forwards", "vjps", "cost", "seconds")
    found = []
    for name, setting, contender in contenders:
        outcome = contender(points)
        rms, mean, largest = errors(outcome, truth)
        cost = [f"{number:.1f}" for number in (outcome.forwards, outcome.vjps, outcome.cost)]
        row(name, setting, f"{rms:.4f}", f"{mean:+.4f}", f"{largest:.4f}", *cost, f"{outcome.seconds:.1f}")
        found.append(outcome)
    return found


def timed(published: Contender, rival: Contender, ours: Contender, points: Points) -> tuple[float, float, float]:
    """Seconds of each on ``points``: medians of interleaved runs, the published protocol once, amid the others."""
    seconds: dict[Contender, list[float]] = {published: [], rival: [], ours: []}
    for turn in range(REPEATS):
        for contender in (rival, ours) if turn % 2 else (ours, rival):
            seconds[contender].append(contender(points).seconds)
        if turn == REPEATS // 2:
            seconds[published].append(published(points).seconds)
    return tuple(statistics.median(times) for times in seconds.values())


def summary(
    contenders: Sequence[tuple[str, str, Contender]], found: Sequence[Outcome], points: Points, truth: Tensor, bound: float
) -> None:
    """The cheapest of each kind within ``bound``, the ratios of their costs and of their seconds."""
    entries = list(zip(contenders, found, strict=True))
    within = [entry for entry in entries[1:] if errors(entry[1], truth)[0] <= bound]
    cheapest = []
    for kind, names in {"one-pass": ("dopri5", "rk45"), "dual-weighted": ("dual", "chosen")}.items():
        candidates = [entry for entry in within if entry[0][0] in names]
        if not candidates:
            print(f"\nNo {kind} solver is within {bound:g} bits/dim: there is nothing to compare", flush=True)
            return
        cheapest.append(min(candidates, key=lambda entry: entry[1].cost))
    chosen = [entries[0], *cheapest]
    few = points.first(max(1, len(points.x) // 4))
    seconds = timed(*(contender for (_, _, contender), _ in chosen), few)
    print(f"\nThe cheapest with an RMS error of at most {bound:g} bits/dim; seconds of {len(few.x)} images")
    table("solver", "setting", "RMS error", "cost", "seconds", "cost, ratio to the last", "seconds, ratio to the last")
    for ((name, setting, _), outcome), time_taken in zip(chosen, seconds, strict=True):
        ratios = f"{outcome.cost / chosen[-1][1].cost:.1f}", f"{time_taken / seconds[-1]:.1f}"
        row(name, setting, f"{errors(outcome, truth)[0]:.4f}", f"{outcome.cost:.1f}", f"{time_taken:.1f}", *ratios)


def pilot_cost(chosen: Chosen, pilot: int, outcome: Outcome) -> None:
    """What the pilot adds to each image's cost."""
    whole = chosen.forwards + chosen.vjps
    print(
        f"\nThe pilot of {pilot} other images chose {chosen.solver}. It took {chosen.forwards:.0f} forwards and "
        f"{chosen.vjps:.0f} vjps in all, {chosen.seconds:.0f} s; for each image this adds"
    )
    table("images", "cost of the pilot", "with that of the solver")
    for images in (64, 1000, 10000):
        row(f"{images:,}", f"{whole / images:.1f}", f"{whole / images + outcome.cost:.1f}")


def images_of(parser: argparse.ArgumentParser, options: argparse.Namespace, run: Run) -> tuple[Tensor, Tensor]:
    """The images, from which the first are taken, and those of the pilot."""
    count, data = options.images, None
    try:
        values = load_array(options.data) if options.data else read((data := build_data(run.config)).test, slice(None)).values
        run.model.data.check(values, options.data or "the test split")
        others = values[count : count + PILOT]
        if not len(others):
            others = read((data or build_data(run.config)).train, slice(PILOT)).values
    except (DataError, RunError) as error:
        parser.error(f"{error}. The images, and {PILOT} more for the pilot, can be given by --data=FILE.npy")
    if len(values) < count:
        parser.error(f"there are {len(values)} images: --images must not be more, got {count}")
    return values, others


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of bits/dim of a trained model at a given error.")
    parser.add_argument("--workdir", required=True, help="a run, trained or imported, of a model of integers")
    parser.add_argument("--data", help="integers (N, *D) as .npy; by default the run's own test split")
    parser.add_argument("--images", type=int, default=64, help="how many of them; those that follow are the pilot's")
    parser.add_argument("--bound", type=float, default=0.004, help="RMS error in bits/dim at which costs are compared")
    parser.add_argument("--converged", type=Path, help="file of converged values, written if it has not those that are needed")
    parser.add_argument("--quick", action="store_true", help="8 images at most, and fewer settings")
    options = parser.parse_args()
    if options.images < 1 or not options.bound > 0:
        parser.error("--images must be at least 1, and --bound positive")
    tolerances, steps = (QUICK_TOLERANCES, QUICK_STEPS) if options.quick else (TOLERANCES, STEPS)
    options.images = min(options.images, 8) if options.quick else options.images
    try:
        run = load(options.workdir)
    except (RunError, CheckpointError) as error:
        parser.error(str(error))
    model, start = run.model, time.perf_counter()
    if model.data.levels is None:
        parser.error(f"{options.workdir} is not a run of integers: bits/dim have no meaning for it")
    values, others = images_of(parser, options, run)
    points = draw(model, values[: options.images])
    print(f"{type(model.sde).__name__}, weights {weights_digest(model)}, {torch.get_num_threads()} threads", flush=True)
    files = [file for file in (options.converged, STORED) if file is not None]
    truth = converged(points, values, files, options.converged)
    chosen = choose(model, others, options.images, options.bound)
    contenders: list[tuple[str, str, Contender]] = [
        ("published", f"{PUBLISHED:g}", Published(PUBLISHED)),
        *((method, f"{tolerance:g}", explicit(method, tolerance)) for method in ("dopri5", "rk45") for tolerance in tolerances),
        *(("dual", f"{number} steps", OnePass(DualWeighted(steps=number))) for number in steps),
        ("chosen", f"{chosen.solver.steps} steps, {chosen.solver.tolerance:.3g} nats", OnePass(chosen.solver)),
    ]
    found = compare(contenders, points, truth)
    pilot_cost(chosen, len(others), found[-1])
    summary(contenders, found, points, truth, options.bound)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
