"""What training costs beside the network: steps of the trainer, and a bare loop with the same network, batches and optimizer.

    python tests/benchmarks/training_overhead.py

The digits' U-Net of ``configs/digits_vp.py`` and an MLP on points in the plane, on one thread. The bare loop draws times and
noise, perturbs, computes the loss, and steps Adam and an average of the weights: what nobody can leave out. Steps of both are
taken in turn, 20 at a time; the medians of their times are compared.
"""

import argparse
import statistics
import tempfile
import time

import torch

from score_sde import VPSDE, ScoreModel
from score_sde.data import Dataset, EpochOrder, digits, read, two_moons
from score_sde.ema import EMA
from score_sde.networks import MLP, UNet
from score_sde.objectives import DenoisingScoreMatching, denoising_score_matching
from score_sde.objectives.weightings import Likelihood
from score_sde.time_sampling import LogSNRTimes
from score_sde.training import STANDARD_HOOKS, Trainer, TrainingOptions, begin, resume

CASES = {
    "digits": (digits, lambda: UNet((1, 8, 8), width=32, multipliers=(1, 1), blocks=1, attention=(1,)), 128),
    "digits, dropout": (
        digits,
        lambda: UNet((1, 8, 8), width=32, multipliers=(1, 1), blocks=1, attention=(1,), dropout=0.1),
        128,
    ),
    "two_moons": (two_moons, lambda: MLP((2,)), 512),
}


def build(name: str) -> tuple[ScoreModel, Dataset, int]:
    """A model and the data of a case."""
    load_data, network, batch = CASES[name]
    torch.manual_seed(0)
    data = load_data()
    return ScoreModel(network(), VPSDE(), data.spec, parameterization="edm", time_input="edm"), data, batch


def bare_loop(name: str):
    """A function that takes so many steps, without seeds, logs, checks or files."""
    model, data, size = build(name)
    values, spec, random = read(data.train, slice(None)).values, data.spec, torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    ema, rule, order = EMA(model, 0.999), LogSNRTimes(), EpochOrder(len(data.train), 0)
    model.train()

    def steps(first: int, count: int) -> None:
        for step in range(first, first + count):
            batch = values[order.rows(step * size, size)]
            t, weight = rule.sample(model.sde, size, random)
            x0 = spec.encode(batch, torch.rand(batch.shape, generator=random))
            epsilon = torch.randn(x0.shape, generator=random)
            loss = (weight * denoising_score_matching(model, x0, t, epsilon, weighting=Likelihood())).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)

    return steps


def trainer_loop(name: str, folder: str):
    """The same by the trainer; log lines as often as by default, no test losses, checkpoints or pictures."""
    model, data, size = build(name)
    options = TrainingOptions(steps=10**6, batch_size=size, sample_every=0, checkpoint_every=10**6)
    objective = DenoisingScoreMatching()
    trainer = Trainer(resume(folder, begin(model, objective, options)), data, folder, options, objective, hooks=STANDARD_HOOKS)
    order = EpochOrder(len(data.train), 0)

    def steps(first: int, count: int) -> None:
        for step in range(first, first + count):
            trainer.take(trainer.state, data.train.batch(order.rows(step * size, size)))
            for hook in trainer.hooks:
                hook.after_step(trainer)

    return steps


def main() -> None:
    """Print the milliseconds of a step and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=15, help="blocks of steps, by turns")
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<18}{'bare loop':>12}{'trainer':>12}{'ratio':>9}   milliseconds a step")
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            loops = bare_loop(name), trainer_loop(name, folder)
            taken: tuple[list[float], list[float]] = ([], [])
            for block in range(options.blocks + 1):
                for loop, seconds in zip(loops, taken, strict=True):
                    began = time.perf_counter()
                    loop(block * options.steps, options.steps)
                    seconds.append((time.perf_counter() - began) / options.steps)
        bare, trained = (1e3 * statistics.median(seconds[1:]) for seconds in taken)  # the first warms up
        ratio = statistics.median(b / a for a, b in zip(*(seconds[1:] for seconds in taken), strict=True))
        print(f"{name:<18}{bare:12.2f}{trained:12.2f}{ratio:9.3f}")


if __name__ == "__main__":
    main()
