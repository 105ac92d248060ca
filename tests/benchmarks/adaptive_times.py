"""How precisely a batch estimates the loss of a trained run, by the rule that draws its times.

    python tests/benchmarks/adaptive_times.py --workdir=RUN [--batches=400] [--batch_size=128]

Denoising score matching on the run's training data, by the averaged weights, with each weighting and each rule. ``adaptive``
learns from as many batches before, and is then held. ``mean`` should not depend on the rule. ``variance`` is that of the mean
over a batch, times the size of the batch, as a share of the squared mean.
"""

import argparse
from pathlib import Path

import torch

from score_sde import load
from score_sde.data import EpochOrder
from score_sde.objectives import WEIGHTINGS
from score_sde.objectives.base import State
from score_sde.objectives.denoising import DenoisingScoreMatching
from score_sde.run import Run, build_data
from score_sde.training import TrainingOptions, TrainStep

RULES = ("uniform", "stratified", "log_snr", "adaptive")


class Estimates:
    """The losses of many batches of a run's training data."""

    def __init__(self, run: Run, batch_size: int, batches: int):
        self.model, self.data, self.batches = run.model, build_data(run.config).train, batches
        self.options = TrainingOptions(batch_size=batch_size)
        self.order = EpochOrder(len(self.data), 0)

    def __call__(self, objective: DenoisingScoreMatching, state: State, first: int = 0) -> tuple[torch.Tensor, State]:
        """The mean loss of each batch from number ``first`` on, float64, and what is learned from them."""
        step, means, size = TrainStep(objective, self.options, self.model.data), [], self.options.batch_size
        learned = state
        for number in range(first, first + self.batches):
            batch = self.data.batch(self.order.rows(number * size, size))
            terms = step.measure(self.model, batch, step.draws(number), learned if first == 0 else state)
            learned = objective.learn(learned, terms.observed)
            means.append(terms.loss.double().mean())
        return torch.stack(means), learned


def main() -> None:
    """Print a table for each weighting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--weightings", default="likelihood,sigma2,edm,min_snr,sigmoid", help=f"of {', '.join(WEIGHTINGS)}")
    options = parser.parse_args()
    estimates = Estimates(load(options.workdir), options.batch_size, options.batches)
    print(f"{'weighting':<14}{'times':<14}{'mean':>12}{'error':>12}{'variance':>12}{'/ log_snr':>12}")
    for weighting in options.weightings.split(","):
        rows = {}
        for times in RULES:
            objective = DenoisingScoreMatching(weighting, times)
            state = objective.begin(estimates.model)
            if state:
                _, state = estimates(objective, state)
            means, _ = estimates(objective, state, first=options.batches)
            rows[times] = means
        for times, means in rows.items():
            mean, spread = means.mean().item(), means.var().item()
            variance, beside = options.batch_size * spread / mean**2, spread / rows["log_snr"].var().item()
            print(
                f"{weighting:<14}{times:<14}{mean:12.4g}{(spread / len(means)) ** 0.5:12.2g}{variance:12.4g}{beside:12.3g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
