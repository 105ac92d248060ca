r"""Where a corrector pays: predictor-corrector against its predictor, at equal evaluations, with a score that is not exact.

    python tests/benchmarks/inexact_score.py

The exact score of a Gaussian mixture in 8 dimensions is multiplied by a factor, as a crude model of a network's error. A
corrector needs the score at one time only, where the factor amounts to another temperature; the predictor carries its errors
from time to time. Given is || cov(samples) - C ||_F / || C ||_F, the median over seeds, with C the mixture's own covariance.
"""

import statistics

import torch

from score_sde import VESDE, VPSDE, EulerMaruyama, GaussianMixture, Langevin, PredictorCorrector, Score, SubVPSDE
from score_sde.solvers import Solver
from tests.oracles import ScaledScore

SDES = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}
SAMPLES, SEEDS, DIM = 1500, 5, 8


def solvers(nfe: int) -> dict[str, Solver]:
    """Three ways to spend ``nfe`` evaluations."""
    return {
        "predictor alone": EulerMaruyama(steps=nfe),
        "1 correction, snr 0.16": PredictorCorrector(EulerMaruyama(steps=nfe // 2), Langevin(snr=0.16)),
        "3 corrections, snr 0.3": PredictorCorrector(EulerMaruyama(steps=nfe // 4), Langevin(snr=0.3), corrections=3),
    }


def covariance_error(solver: Solver, score: Score, truth: GaussianMixture, seed: int) -> float:
    """Relative Frobenius error of the covariance of ``SAMPLES`` samples."""
    x = solver.sample(score, (SAMPLES, DIM), seed=seed, denoise=True, dtype=torch.float64).x
    covariance = truth.covariance()
    return float((x.T.cov() - covariance).norm() / covariance.norm())


def main() -> None:
    random = torch.Generator().manual_seed(0)
    means = torch.randn(3, DIM, generator=random, dtype=torch.float64)
    truth = GaussianMixture(means, torch.linspace(0.05, 0.4, 3, dtype=torch.float64))
    names = list(solvers(100))
    print("| SDE | factor | evaluations | " + " | ".join(names) + " |\n|" + "---|" * (3 + len(names)))
    for name, sde in SDES.items():
        for factor in (0.8, 1.0, 1.2):
            score = ScaledScore(truth.score(sde), factor)
            for nfe in (100, 400):
                found = [
                    statistics.median(covariance_error(solver, score, truth, seed) for seed in range(SEEDS))
                    for solver in solvers(nfe).values()
                ]
                print(f"| {name} | {factor} | {nfe} | " + " | ".join(f"{error:.3f}" for error in found) + " |", flush=True)


if __name__ == "__main__":
    main()
