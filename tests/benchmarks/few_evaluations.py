"""Error against evaluations: what ``tune`` chose, beside diffusers' UniPC and DPM-Solver++, on latents that it never saw.

    python tests/benchmarks/few_evaluations.py                                    the exact score of a mixture fitted to digits
    python tests/benchmarks/few_evaluations.py --workdir=RUN --t_end=0.001        a trained network

The error is the root mean square distance from the converged solution of the probability-flow ODE. Peers take every standard
grid, of which the best *for these latents* is shown (with a network six, found on a quarter of them), and then our tuned
grid: what is left between the last two columns is what the solver gives, the rest the grid. The last ratio is that of the
medians over samples, to the peer whose median is the smallest. A run keeps its choices in tuned.json; those that it has already
are used.
"""

import argparse
import time
from pathlib import Path

import torch

from score_sde import VESDE, ProbabilityFlow, load
from score_sde.experiments.tuning import GRIDS, tune
from score_sde.run import RunError, load_tuned, save_choice
from score_sde.score import draw_latents
from score_sde.solvers.tuned import Tuned
from tests.oracles import digits_mixture
from tests.oracles.peers import peer_solve, scheduler

PEERS = {
    f"{name}{variant}{'' if lower else ', not lowered'}": (kind, {**options, **solver_type, "lower_order_final": lower})
    for name, kind, options, variants in (
        ("UniPC-2", "unipc", {"solver_order": 2}, ("bh1", "bh2")),
        ("UniPC-3", "unipc", {"solver_order": 3}, ("bh1", "bh2")),
        ("DPM-Solver++ 2M", "dpm_solver_pp", {"solver_order": 2}, ("",)),
    )
    for variant, solver_type in ((f" {v}", {"solver_type": v}) if v else ("", {}) for v in variants)
    for lower in (True, False)
}
"""With the order lowered in the last steps, which is their default, and without."""


def rms(difference: torch.Tensor) -> float:
    return difference.double().square().mean().sqrt().item()


def median(difference: torch.Tensor) -> float:
    """The median over samples of their root mean square over coordinates."""
    return difference.double().flatten(1).square().mean(1).sqrt().median().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--t_end", type=float)
    parser.add_argument("--nfe", default=",".join(map(str, (*range(5, 21), 25, 30))))
    parser.add_argument("--latents", type=int, default=2048, help="latents of the test")
    parser.add_argument("--pilot", type=int, default=512)
    parser.add_argument("--trials", type=int, default=180)
    options = parser.parse_args()
    budgets = [int(nfe) for nfe in options.nfe.split(",")]
    if options.workdir:
        score = load(options.workdir).model
        shape, converged = score.data.shape, ProbabilityFlow(method="rk45", rtol=1e-5, atol=1e-5)
    else:
        score = digits_mixture().score(VESDE(sigma_min=0.002, sigma_max=80.0))
        shape, converged = (64,), ProbabilityFlow(method="dopri8", rtol=1e-9, atol=1e-9)
    sde = score.sde
    t_end = options.t_end or sde.t_min

    tuned = chosen(options, score, shape, budgets, t_end)
    x = draw_latents(score, (options.latents, *shape), seed=1, purpose="test")
    with torch.no_grad():
        exact = converged.solve(score, x, sde.T, t_end)
        print(f"test: {options.latents} other latents, converged by {converged.describe()}")
        heading = f"{'nfe':>4}{'best peer, best standard grid':>52}{'best peer, our grid':>40}"
        print(f"{heading}{'ours':>10}{'ratio':>8}{'median':>8}  solver")
        for nfe in budgets:
            solver = tuned.with_budget(nfe)

            def of_peer(name: str, grid, rows: slice, nfe=nfe) -> torch.Tensor:
                kind, settings = PEERS[name]
                found = peer_solve(scheduler(kind, **settings), score, x[rows], sde.T, t_end, steps=nfe, grid=grid)
                return found - exact[rows]

            few, every = slice(0, max(8, options.latents // 4)), slice(0, options.latents)
            shortlist = [(name, grid) for name in PEERS for grid in GRIDS]
            if options.workdir:
                shortlist = sorted(shortlist, key=lambda pair: rms(of_peer(*pair, few)))[:6]
            found = {pair: of_peer(*pair, every) for pair in shortlist}
            standard = min((rms(difference), *pair) for pair, difference in found.items())
            grid = solver.choice.solver.grid
            on_ours = min((rms(of_peer(name, grid, every)), name) for name in {n for n, _ in shortlist})
            ours = solver.solve(score, x, sde.T, t_end) - exact
            error, of_medians = rms(ours), median(ours) / min(map(median, found.values()))
            peer = f"{standard[0]:.4f} {standard[1]} ({standard[2]})"
            other = f"{on_ours[0]:.4f} {on_ours[1]}"
            print(
                f"{nfe:>4}{peer:>52}{other:>40}{error:>10.4f}{error / standard[0]:>8.2f}{of_medians:>8.2f}  {solver}",
                flush=True,
            )


def chosen(options: argparse.Namespace, score, shape, budgets: list[int], t_end: float) -> Tuned:
    """The choices of a run that it has already, and new ones for what is missing."""
    how = {"pilot": options.pilot, "trials": options.trials, "t_end": t_end}
    try:
        missing = set(budgets) - {choice.nfe for choice in load_tuned(options.workdir).choices} if options.workdir else budgets
    except RunError:
        missing = budgets
    keep = (lambda choice: save_choice(options.workdir, choice, how)) if options.workdir else None
    if not missing:
        return load_tuned(options.workdir)
    start = time.perf_counter()
    tuned = tune(score, shape, sorted(missing), **how, keep=keep, progress=True)
    print(f"tuned for {len(missing)} budgets in {time.perf_counter() - start:.0f} s on {options.pilot} latents", flush=True)
    return load_tuned(options.workdir) if options.workdir else tuned


if __name__ == "__main__":
    main()
