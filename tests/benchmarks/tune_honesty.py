"""Does ``tune`` choose worse than what everybody has? Mixtures drawn by seed, at default settings, on latents it never saw.

    python tests/benchmarks/tune_honesty.py                      mixtures of seeds 0 to 11, of which 10 and 11 are the hard kind
    python tests/benchmarks/tune_honesty.py --seeds=20,21
    python tests/benchmarks/tune_honesty.py --workdir=RUN        a trained network
    python tests/benchmarks/tune_honesty.py --crosscheck         one cell with diffusers' own samplers

The peers are DPM-Solver++ 2M and UniPC of orders 2 and 3, bh1 and bh2, with and without lowered order at the end, on five
grids: 50 in all. They are our implementations, which agree with diffusers' to 1e-5
(``tests/solvers/test_diffusers_agreement.py``). The peer is chosen by the median error on the very latents that ``tune`` used.
Each line has, on other latents: the ratio of the median error of ours to that of the peer, its standard error by the bootstrap
over latents, whether it is at most 5 % and two standard errors above 1, the ratio to the peer that is best on the test latents
themselves, and the ratios to the chosen peer at the 90 % quantile and of the root mean square.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from score_sde import VESDE, VPSDE, DPMSolverPP, GaussianMixture, SubVPSDE, UniPC, load, tune
from score_sde.experiments.tuning import FINE, GRIDS, Candidate, Pilot
from score_sde.score import draw_latents
from tests.oracles.peers import peer_solve, scheduler

BUDGETS = (6, 8, 10, 15, 20)
SDES = {"VP": VPSDE(), "VE": VESDE(sigma_min=0.002, sigma_max=80.0), "sub-VP": SubVPSDE()}
SHAPES = ((2,), (4,), (8,), (16,), (2, 16), (3, 4, 4), (64,), (1, 8, 8))
KINDS = ("isotropic", "low rank", "full", "separated", "overlapping", "unequal weights")

PEERS = [
    *(DPMSolverPP(p=2, lower_order_final=lower) for lower in (True, False)),
    *(
        UniPC(p=p, variant=variant, lower_order_first=p > 2, lower_order_final=lower)
        for p in (2, 3)
        for variant in ("bh1", "bh2")
        for lower in (True, False)
    ),
]


def hard(seed: int) -> GaussianMixture:
    """5 components over 3 x 4 x 4, of rank 4 + 0.03^2, on which an earlier ``tune`` lost by up to a factor of 2.3."""
    random = torch.Generator().manual_seed(seed)
    factor = torch.randn(5, 48, 4, generator=random, dtype=torch.float64) / 4
    means = 0.5 * torch.randn(5, 3, 4, 4, generator=random, dtype=torch.float64)
    return GaussianMixture(means, factor @ factor.mT + 0.03**2 * torch.eye(48, dtype=torch.float64))


def drawn(seed: int) -> tuple[str, GaussianMixture, str]:
    """The description of a mixture, the mixture, and the name of its SDE, all drawn by ``seed``."""
    if seed in (10, 11):
        return "5 x (3, 4, 4), rank 4 + 0.03^2, VE", hard(seed), "VE"
    random = torch.Generator().manual_seed(1000 + seed)
    whole = lambda count: int(torch.randint(count, (), generator=random))
    uniform = lambda: float(torch.rand((), generator=random, dtype=torch.float64))
    normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
    kind, sde, shape = KINDS[seed % len(KINDS)], list(SDES)[whole(len(SDES))], SHAPES[whole(len(SHAPES))]
    dim, count = math.prod(shape), 1 + whole(20)
    spread = {"separated": 2.0, "overlapping": 0.3}.get(kind, 0.5 + 0.7 * uniform())
    within = 0.1 if kind == "separated" else 0.4
    means = spread * normal(count, *shape)
    if kind == "isotropic":
        covariances = (within * (0.05 + torch.rand(count, generator=random, dtype=torch.float64))) ** 2
        what = f"sd {covariances.amin().sqrt():.2g} to {covariances.amax().sqrt():.2g}"
    else:
        rank, noise = dim if kind == "full" else 1 + whole(max(1, dim // 3)), 0.01 * 10 ** uniform()
        factor = within * normal(count, dim, rank) / rank**0.5
        covariances = factor @ factor.mT + noise**2 * torch.eye(dim, dtype=torch.float64)
        what = f"rank {rank} + {noise:.2g}^2"
    weights = torch.rand(count, generator=random) ** 3 + 0.01 if kind == "unequal weights" else None
    name = f"{kind}: {count} x {shape}, means of spread {spread:.2g}, {what}, {sde}"
    return name, GaussianMixture(means, covariances, weights), sde


def errors(score, solver, x: torch.Tensor, exact: torch.Tensor) -> np.ndarray:
    """The root mean square over coordinates of the distance of each sample from its converged solution."""
    found = solver.solve(score, x, score.sde.T, score.sde.t_min)
    return (found - exact).double().flatten(1).square().mean(1).sqrt().numpy()


def ratio(ours: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The ratio of medians, and its standard error by 400 draws of the latents with replacement."""
    rows = np.random.default_rng(0).integers(len(ours), size=(400, len(ours)))
    return np.median(ours) / np.median(others), float((np.median(ours[rows], 1) / np.median(others[rows], 1)).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, range(12))))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--nfe", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument(
        "--shortlist", type=int, default=50, help="peers, best on the pilot, that are measured on the test latents"
    )
    parser.add_argument("--crosscheck", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.workdir:
        model = load(options.workdir).model
        cases = [(str(options.workdir), model, model.data.shape)]
    else:
        every = [drawn(int(seed)) for seed in options.seeds.split(",")]
        cases = [(name, mixture.score(SDES[sde]), mixture.event) for name, mixture, sde in every]
    with torch.no_grad():
        if options.crosscheck:
            crosscheck(*cases[-1][1:])
            return
        ratios = np.array([pair for case in cases for pair in measured(*case, options)])
    found, above = ratios.T
    shown = " ".join(f"{value:.2f}" for value in np.quantile(found, (0, 0.25, 0.5, 0.75, 1)))
    print(
        f"\n{len(found)} cells, {above.sum():.0f} above 5 % + 2 s.e.; "
        f"ratio: geometric mean {np.exp(np.log(found).mean()):.2f}, least, quartiles and largest {shown}"
    )


def measured(name: str, score, shape, options: argparse.Namespace) -> Iterator[tuple[float, bool]]:
    """Print a line for each budget; the ratio, and whether it is too large."""
    sde, start = score.sde, time.perf_counter()
    tuned = tune(score, shape, [int(nfe) for nfe in options.nfe.split(",")])
    print(f"\n{name}: tuned in {time.perf_counter() - start:.0f} s", flush=True)
    pilot = Pilot(score, shape, tune.__kwdefaults__["pilot"], 0, None, None)  # the latents on which it was tuned
    x = draw_latents(score, (options.latents, *shape), seed=1, purpose="test")
    exact = UniPC(steps=2 * FINE, p=3, lower_order_first=True).solve(score, x, sde.T, sde.t_min)
    for choice in tuned.choices:
        every = [Candidate(peer, grid).solver(choice.nfe, sde, sde.T, sde.t_min) for peer in PEERS for grid in GRIDS]
        every.sort(key=lambda peer: np.median(errors(score, peer, pilot.latents, pilot.fine)))
        peers = [errors(score, peer, x, exact) for peer in every[: options.shortlist]]
        ours, peer = errors(score, choice.solver, x, exact), peers[0]
        found, stderr = ratio(ours, peer)
        above = found > 1.05 + 2 * stderr
        to_best = np.median(ours) / min(map(np.median, peers))
        tail, rms = np.quantile(ours, 0.9) / np.quantile(peer, 0.9), np.sqrt(np.mean(ours**2) / np.mean(peer**2))
        verdict, what = "ABOVE" if above else "ok", "standard" if choice.solver == choice.rival else "own"
        print(
            f"{choice.nfe:>4}  {found:6.3f} +- {stderr:.3f} {verdict:5}  best peer {to_best:6.3f}"
            f"  90 % {tail:6.3f}  rms {rms:6.3f}  {what}",
            flush=True,
        )
        yield found, above


def crosscheck(score, shape) -> None:
    """Our DPM-Solver++ 2M beside diffusers', 10 evaluations on the log-SNR grid."""
    sde = score.sde
    x = draw_latents(score, (128, *shape), seed=1, purpose="test")
    exact = UniPC(steps=2 * FINE, p=3, lower_order_first=True).solve(score, x, sde.T, sde.t_min)
    ours = errors(score, DPMSolverPP(steps=10, p=2, lower_order_final=True), x, exact)
    theirs = scheduler("dpm_solver_pp", solver_order=2, lower_order_final=True)
    found = peer_solve(theirs, score, x, sde.T, sde.t_min, steps=10, grid="log_snr")
    of_theirs = (found - exact).flatten(1).square().mean(1).sqrt().numpy()
    print(f"median error of ours {np.median(ours):.6g}, of diffusers' {np.median(of_theirs):.6g}")


if __name__ == "__main__":
    main()
