"""What a solver step costs outside the network, beside a forward of the network:

    PYTHONPATH=. python tests/benchmarks/solver_overhead.py

The network is that of the config digits_vp with its initial weights, at batch 64. Solvers are run in turns, and medians shown.
The random numbers of a stochastic solver, a generator for each sample, are part of its step.
"""

import argparse
import statistics
import time

import torch

from score_sde.config import read_config
from score_sde.data import Moments
from score_sde.experiments.comparison import Clock, timed
from score_sde.run import build_model, data_spec
from score_sde.solvers import SOLVERS
from tests.solvers.variants import TO_DATA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    config = read_config("digits_vp").to_dict()
    config["model"]["sigma_data"] = 0.7
    spec = data_spec(config)
    model = build_model(config, spec).eval()
    model.moments = Moments(torch.zeros(spec.shape), torch.eye(spec.dim), None)
    x = torch.randn(options.batch, *spec.shape)
    clock = Clock()
    score = timed(model, clock)
    solvers = {name: SOLVERS[name]().with_budget(20) for name in TO_DATA}
    spent = {name: [] for name in solvers}
    forwards = []
    for _ in range(options.repeats):
        for name, solver in solvers.items():
            clock.seconds, start = 0.0, time.perf_counter()
            nfe = solver.sample(score, x_T=x).nfe
            spent[name].append((time.perf_counter() - start - clock.seconds) / nfe)
            forwards.append(clock.seconds / nfe)
    forward = statistics.median(forwards)
    print(f"a forward at batch {options.batch}: {1e3 * forward:.2f} ms, {torch.get_num_threads()} threads")
    for name, times in sorted(spent.items(), key=lambda item: statistics.median(item[1])):
        median = statistics.median(times)
        print(f"{name:<20}{1e3 * median:8.3f} ms outside the network per evaluation, {median / forward:7.2%} of a forward")


if __name__ == "__main__":
    main()
