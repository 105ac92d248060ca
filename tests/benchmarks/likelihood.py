r"""How far is the likelihood from the truth? log p by the probability-flow ODE against the closed form of a mixture.

    python tests/benchmarks/likelihood.py

For the exact score of a Gaussian mixture, the exact divergence and the exact marginal at T as the prior, all that is left is
the error of the ODE solver (dopri5 at rtol = atol = 1e-6) and of the arithmetic. It is given as the largest absolute difference
of log p over a batch, in nats per dimension, from the closed form at t_min in float64.

The prior mismatch, KL(p_T || prior) in nats per dimension, is what log p would lose on average by taking the SDE's own prior
for the marginal at T. It belongs to the SDE and the data, not to the solver. It is computed from the first two moments of the
mixture, which are all that matters once alpha(T) / sigma(T) is small.
"""

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch

from score_sde import SDE, VESDE, VPSDE, ProbabilityFlow, SolverError, SubVPSDE, log_likelihood
from score_sde.data import Moments
from score_sde.exact import GaussianMixture
from score_sde.likelihood import prior_mismatch
from score_sde.tensors import SampleNoise

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script sees its own folder, not the one above tests

from tests.oracles import mixture

SDES = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE()}
CASES = {(2,): 8, (16,): 8, (3, 8, 8): 4}  # event shape: points in the batch
DTYPES = (torch.float64, torch.float32)


def noised(truth: GaussianMixture, sde: SDE, t: float, count: int, seed: int) -> torch.Tensor:
    """``count`` exact draws of x_t, in float64."""
    noise = SampleNoise(seed, (count, *truth.event), purpose="epsilon", dtype=torch.float64)
    return sde.perturb(truth.sample(count, seed=seed), t, noise.normal())


def main() -> None:
    parser = argparse.ArgumentParser(description="log p by the probability-flow ODE against the closed form of a mixture.")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="rtol and atol of the ODE solver")
    options = parser.parse_args()
    solver = ProbabilityFlow(rtol=options.tolerance, atol=options.tolerance)
    header = ("shape", "SDE", "dtype", "batch", "error [nats/dim]", "prior mismatch [nats/dim]", "nfe", "vjps", "seconds")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for shape, batch in CASES.items():
        for name, sde in SDES.items():
            truth = mixture(shape)
            x = noised(truth, sde, sde.t_min, batch, seed=0)
            mismatch = math.log(2) * prior_mismatch(sde, Moments(truth.mean(), truth.covariance(), None))
            for dtype in DTYPES:
                score, points, start = truth.to(dtype).score(sde), x.to(dtype), time.perf_counter()
                marginal = partial(score.log_prob, t=sde.T)
                labels = ["x".join(map(str, shape)), name, str(dtype)[6:], str(batch)]
                try:
                    found = log_likelihood(score, points, solver=solver, prior=marginal)
                except SolverError as error:
                    print("| " + " | ".join([*labels, str(error), f"{mismatch:.1e}", "", "", ""]) + " |", flush=True)
                    continue
                closed = truth.score(sde).log_prob(points.double(), sde.t_min)
                error = float((found.log_prob.double() - closed).abs().max()) / math.prod(shape)
                seconds = time.perf_counter() - start
                cells = [f"{error:.1e}", f"{mismatch:.1e}", str(found.nfe), str(found.vjps), f"{seconds:.1f}"]
                print("| " + " | ".join([*labels, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
