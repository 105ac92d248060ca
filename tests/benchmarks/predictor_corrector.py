r"""Is a corrector worth its evaluations? Predictor-corrector against its predictor alone at equal numbers of evaluations.

    python tests/benchmarks/predictor_corrector.py [--seeds 9] [--samples 4000]

Euler-Maruyama with N steps is compared with N / 2 steps of Euler-Maruyama, each followed by one Langevin step (Song et al.
2021, Algorithms 1 to 5), for the exact score of a Gaussian mixture: there is no network, so that what is measured is the error
of the sampler alone. Every sampler starts from the SDE's prior and ends with one denoising evaluation, not counted in N.

Two errors are given and, in brackets, their ratios to the error of the predictor alone: above 1, the corrector costs more than
it brings.

    distance     sliced Wasserstein-2 distance to as many exact draws of the mixture: the median of the repetitions
    covariance   || cov(samples) - C ||_F / || C ||_F, with C the mixture's own covariance and the samples of all
                 repetitions taken together, so that bias shows through the noise

Both have a floor, what exact draws themselves score, which is printed too: ratios near it mean nothing. For the VE SDE the
log-SNR grid is the uniform one. All samplers of a case share x_T, the stream of noise and the exact draws. To keep the whole to
a few minutes, 320 evaluations are left out on the log-SNR grid, and 64 dimensions get the uniform grid alone, up to 160
evaluations, a third of the repetitions and a quarter of the samples.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from score_sde import SDE, VESDE, VPSDE, EulerMaruyama, GaussianMixture, Langevin, PredictorCorrector, SubVPSDE
from score_sde.metrics import sliced_wasserstein
from score_sde.score import BoundScore, counting, posterior_mean
from score_sde.solvers import Solver

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder, not the one above tests

from tests.oracles import BatchNoise, mixture

SDES = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE(sigma_max=50.0)}
CORRECTORS = {
    **{f"snr {snr}": Langevin(snr=snr) for snr in (0.05, 0.1, 0.16, 0.3)},
    "norm ratio 0.16": Langevin(snr=0.16, rule="norm_ratio"),
}


def solvers(grid: str) -> dict[str, Solver]:
    """The predictor alone first, then with each corrector."""
    predictor = EulerMaruyama(grid=grid)
    return {"alone": predictor, **{name: PredictorCorrector(predictor, corrector) for name, corrector in CORRECTORS.items()}}


def budgets(dim: int, sde: SDE) -> dict[str, tuple[int, ...]]:
    """The numbers of evaluations on each time grid."""
    most = (10, 20, 40, 80, 160)
    if dim > 2:
        return {"uniform": most}
    return {"uniform": (*most, 320)} if isinstance(sde, VESDE) else {"uniform": (*most, 320), "log_snr": most}


def draw(solver: Solver, truth: GaussianMixture, sde: SDE, nfe: int, count: int, seed: int = 0) -> Tensor:
    """``count`` samples with at most ``nfe`` evaluations and a denoising step."""
    noise = BatchNoise(seed, (count, *truth.event), torch.float32)
    with counting(truth.score(sde)) as (score, counter):
        x = solver.with_budget(nfe).solve(score, sde.prior_noise(noise.normal()).float(), sde.T, sde.t_min, noise=noise)
    if counter.nfe != nfe:
        raise RuntimeError(f"{solver} took {counter.nfe} evaluations, not {nfe}: the comparison would not be at equal cost")
    return posterior_mean(BoundScore(truth.score(sde)), x, sde.t_min)


def errors(x: Tensor, exact: Tensor, covariance: Tensor, repetitions: int) -> tuple[float, float]:
    """Median distance of the repetitions in ``x`` to those in ``exact``, and relative error of the covariance of all."""
    pairs = zip(x.chunk(repetitions), exact.chunk(repetitions), strict=True)
    distance = statistics.median(sliced_wasserstein(a, b, directions=32, seed=i) for i, (a, b) in enumerate(pairs))
    return distance, float((x.double().T.cov() - covariance).norm() / covariance.norm())


def rows(dim: int, repetitions: int, samples: int) -> Iterator[tuple[list[str], list[tuple[float, float]]]]:
    """For the floor and each case: its labels, and the errors of every solver. The repetitions run as one batch."""
    truth, covariance, count = mixture((dim,), dtype=torch.float32), mixture((dim,)).covariance(), repetitions * samples
    exact = truth.sample(count, seed=1)
    yield [str(dim), "exact draws", "", ""], [errors(truth.sample(count, seed=2), exact, covariance, repetitions)]
    for name, sde in SDES.items():
        for grid, numbers in budgets(dim, sde).items():
            for nfe in numbers:
                drawn = (draw(solver, truth, sde, nfe, count) for solver in solvers(grid).values())
                yield [str(dim), name, grid, str(nfe)], [errors(x, exact, covariance, repetitions) for x in drawn]


HEADER = ("D", "SDE", "grid", "evaluations", "predictor alone", *CORRECTORS)
RULE = "|" + "---|" * len(HEADER)


def row(cells: Sequence[str]) -> str:
    """A line of a markdown table."""
    return "| " + " | ".join([*cells, *[""] * (len(HEADER) - len(cells))]) + " |"


def line(labels: list[str], found: list[float]) -> str:
    """The errors of one case, with their ratios to the first."""
    return row([*labels, f"{found[0]:.3f}", *(f"{value:.3f} ({value / found[0]:.2f})" for value in found[1:])])


def main() -> None:
    parser = argparse.ArgumentParser(description="Predictor-corrector against its predictor alone at equal evaluations.")
    parser.add_argument("--seeds", type=int, default=9, help="repetitions in 2 dimensions, a third of them in 64")
    parser.add_argument("--samples", type=int, default=4000, help="samples per run in 2 dimensions, a quarter of them in 64")
    options = parser.parse_args()
    if options.seeds < 1 or options.samples < 8:
        parser.error("--seeds must be at least 1 and --samples at least 8")
    start = time.perf_counter()
    print(f"Sliced Wasserstein distance to exact draws (ratio to the predictor alone)\n\n{row(HEADER)}\n{RULE}")
    covariances = []
    with torch.no_grad():
        for dim, repetitions, samples in (
            (2, options.seeds, options.samples),
            (64, max(1, options.seeds // 3), options.samples // 4),
        ):
            for labels, found in rows(dim, repetitions, samples):
                print(line(labels, [distance for distance, _ in found]), flush=True)
                covariances.append(line(labels, [covariance for _, covariance in found]))
    print(f"\nRelative error of the covariance (ratio to the predictor alone)\n\n{row(HEADER)}\n{RULE}", *covariances, sep="\n")
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
