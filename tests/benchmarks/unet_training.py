r"""What does a training step cost? Our U-Net beside diffusers' of the same architecture, and gradient checkpointing.

    python tests/benchmarks/unet_training.py

The first table compares our ``unet`` with the diffusers ``UNet2DModel`` that it is exported to, blocks, widths, attention and
weights the same; their outputs are checked to agree first. The second compares networks of ours with and without ``recompute``.

A step is forward, backward of a mean square and one fused AdamW update. Steps of the two are interleaved in one process, and
the median time of each is given, with the median of the ratios of neighbouring steps. ``kept`` is what autograd keeps of a
forward pass for the backward one, each storage counted once, the parameters not at all. ``peak`` is by how much training steps
raise the resident memory of a fresh process beyond the network, its gradients and the optimizer's state; it is read from /proc,
so on Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from score_sde import VPSDE, DataSpec, ScoreModel
from score_sde.interop import from_diffusers, to_diffusers
from score_sde.networks import NCSNpp, UNet, ddpm

SHAPE, BATCH = (3, 32, 32), 8
SIZE = {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1,)}
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {
    "unet": lambda recompute: UNet(SHAPE, **SIZE, recompute=recompute),
    "ddpm": lambda recompute: ddpm(SHAPE, **SIZE, dropout=0.0, recompute=recompute),
    "ncsnpp": lambda recompute: NCSNpp(SHAPE, **SIZE, dropout=0.0, recompute=recompute),
}
PRECISIONS: dict[str, Callable[[], AbstractContextManager]] = {
    "float32": nullcontext,
    "bf16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def batch() -> tuple[Tensor, Tensor]:
    """Images, and positive time labels."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, *SHAPE, generator=random), 1 + 998 * torch.rand(BATCH, generator=random)


def pair() -> tuple[nn.Module, nn.Module]:
    """Our U-Net with random weights, and the same one of diffusers."""
    torch.manual_seed(0)
    ours = NETWORKS["unet"](False)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(ScoreModel(ours, VPSDE(), DataSpec(SHAPE)), folder)
        theirs = from_diffusers(folder).network
    x, labels = batch()
    with torch.no_grad():
        difference = float((ours.eval()(x, labels) - theirs(x, labels)).abs().max() / ours(x, labels).abs().max())
    if difference > 1e-4:
        raise RuntimeError(f"the two networks are not the same: their outputs differ by {difference:.1e}")
    return ours.train(), theirs.train()


class Training:
    """A network and its optimizer, ready for one step after another."""

    def __init__(self, network: nn.Module, precision: str):
        self.network, self.precision = network.train(), PRECISIONS[precision]
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
        self.x, self.labels = batch()

    def loss(self) -> Tensor:
        """The mean square of the output."""
        with self.precision():
            output = self.network(self.x, self.labels)
        return output.float().square().mean()

    def step(self) -> float:
        """Make a step; the seconds it took."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        return time.perf_counter() - start

    def kept(self) -> int:
        """Bytes that autograd keeps between forward and backward."""
        owned = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        storages: dict[int, int] = {}
        alive = []  # so that no storage's address is used again

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            alive.append(tensor)
            if storage.data_ptr() not in owned:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(storages.values())


def compared(first: Training, second: Training, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step of each, and the median of the ratios of neighbouring steps, first to second."""
    times = []
    for number in range(steps + 2):
        pair = [first.step(), second.step()] if number % 2 else [second.step(), first.step()][::-1]
        times.append(pair)
    times = times[2:]  # the first ones allocate
    ratio = statistics.median(a / b for a, b in times)
    return *(statistics.median(column) for column in zip(*times, strict=True)), ratio


def resident() -> float:
    """The largest resident memory of this process so far, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def peak(name: str, precision: str) -> float:
    """Growth of the resident memory by training steps, in MB, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak(name: str, precision: str) -> None:
    """Print the growth of the resident memory by three steps of ``ours``, ``theirs``, or ``unet:True``: with recompute."""
    if name in ("ours", "theirs"):
        network = pair()[name == "theirs"]
    else:
        kind, recompute = name.split(":")
        network = NETWORKS[kind](recompute == "True")
    training = Training(network, precision)
    for parameter in network.parameters():  # gradients and the optimizer's state are there before the measurement
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    before = resident()
    for _ in range(3):
        training.step()
    print(json.dumps(resident() - before))


def table(*header: str) -> None:
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training steps of our U-Net beside diffusers', and with recompute.")
    parser.add_argument("--steps", type=int, default=9, help="steps that are timed")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak, options.precision)
        return
    ours, theirs = pair()
    size = sum(p.numel() for p in ours.parameters()) / 1e6
    print(f"{size:.1f} M parameters, batch {BATCH} of {SHAPE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    table(
        "precision",
        "ours [s]",
        "diffusers [s]",
        "ratio",
        "kept, ours [MB]",
        "kept, diffusers",
        "peak, ours [MB]",
        "peak, diffusers",
    )
    for precision in PRECISIONS:
        both = [Training(network, precision) for network in (ours, theirs)]
        mine, other, ratio = compared(*both, options.steps)
        kept = [f"{training.kept() / 1e6:.0f}" for training in both]
        peaks = [f"{peak(name, precision):.0f}" for name in ("ours", "theirs")]
        row(precision, f"{mine:.3f}", f"{other:.3f}", f"{ratio:.2f}", *kept, *peaks)
    table("network", "keep [s]", "recompute [s]", "ratio", "kept [MB]", "kept, recompute", "peak [MB]", "peak, recompute")
    for name, build in NETWORKS.items():
        without, recomputed = (Training(build(recompute), "float32") for recompute in (False, True))
        slow, fast, ratio = compared(recomputed, without, options.steps)
        kept = [f"{training.kept() / 1e6:.0f}" for training in (without, recomputed)]
        peaks = [f"{peak(f'{name}:{recompute}', 'float32'):.0f}" for recompute in (False, True)]
        row(name, f"{fast:.3f}", f"{slow:.3f}", f"{ratio:.2f}", *kept, *peaks)


if __name__ == "__main__":
    main()
