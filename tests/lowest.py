"""Everything once, briefly: what is run with the oldest packages that pyproject.toml allows (``make lowest``).

Import, every solver on a small mixture, both likelihoods and the bounds, every network, and the commands: train, go on, sample,
likelihood, compare, tune, export, doctor. Each result is held against what is known of it; half a minute of one core.
"""

import importlib.metadata
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import score_sde
from score_sde import VESDE, VPSDE, DataSpec, DualWeighted, GaussianMixture, SubVPSDE, bits_per_dim, log_likelihood
from score_sde.cli import main
from score_sde.likelihood import continuous_bound, discrete_bound
from score_sde.networks import NETWORKS
from score_sde.sdes import ddpm_schedule
from score_sde.solvers import SOLVERS

PINS = Path(__file__).parent / "lowest-constraints.txt"


def versions() -> None:
    """The packages are those of the constraints: else the run would say nothing."""
    for line in PINS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, wanted = line.split("==")
            found = importlib.metadata.version(name)
            if found != wanted:
                sys.exit(f"{name} is {found}, and the lowest that is allowed is {wanted}")
    print("torch", torch.__version__, "numpy", np.__version__)


def solvers() -> None:
    mixture = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), [0.05, 0.1])
    for sde in (VPSDE(), SubVPSDE(), VESDE(), ddpm_schedule()):
        score = mixture.score(sde)
        for name in [name for name in SOLVERS if name != "langevin"]:  # it takes one level of noise
            solver = SOLVERS[name]()
            solver = solver if name in ("adaptive_sde", "ode") else solver.with_budget(60)
            x = solver.sample(score, (64, 2), seed=0).x
            near = (x[:, None] - mixture.means).norm(dim=2).amin(1)
            check(f"{name} under {type(sde).__name__}", near.median().item() < 1.0)
        x = mixture.sample(8, seed=1)
        exact = score.log_prob(x, sde.t_min)
        for solver in (None, DualWeighted()):
            found = log_likelihood(score, x, **({} if solver is None else {"solver": solver})).log_prob
            check(f"log p under {type(sde).__name__}", (found - exact).abs().max().item() < 0.1)
    spec, values = DataSpec((2,), levels=16), torch.randint(16, (12, 2), generator=torch.Generator().manual_seed(0))
    score = mixture.score(VPSDE())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bits = bits_per_dim(score, values, data=spec, probes=2, truncation=True).mean
        for bound in (discrete_bound(score, values, data=spec, steps=20), continuous_bound(score, values, data=spec, times=20)):
            check("a bound", np.isfinite(bound.mean) and np.isfinite(bits))


def networks() -> None:
    for name, build in NETWORKS.items():
        if name != "diffusers":
            shape = (2,) if name == "mlp" else (1, 16, 16)
            network = build(shape)
            output = network(torch.zeros(1, *shape), torch.full((1,), 0.5))
            check(f"network {name}", output.shape == (1, *shape) and output.isfinite().all().item())


def commands() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = f"--workdir={folder}/run"
        small = ["--config.training.batch_size=64", "--config.network.mlp.width=32", "--config.training.sample_every=20"]
        command("train", "--config=two_moons", run, "--config.training.steps=40", *small, "--quiet")
        command("train", run, "--config.training.steps=60", "--quiet")
        command("sample", run, "--n=16", "--solver=unipc", "--nfe=8", "--quiet")
        command("likelihood", run, "--n=8", "--config.likelihood.audit=4", "--quiet")
        command("compare", run, "--solvers=ddim,pc", "--nfe=6", "--n=64", "--quiet")
        command("tune", run, "--nfe=4", "--pilot=8", "--trials=10", "--quiet")
        command("export", run, f"--output={folder}/exported")
        command("likelihood", f"--workdir={folder}/exported", "--n=4", "--quiet")
        (record,) = Path(folder, "run").glob("likelihood_*.json")
        check("bits/dim", np.isfinite(json.loads(record.read_text())["mean"]))
        digits = ["--config=digits_vp", f"--workdir={folder}/digits", "--config.training.steps=2", "--quiet"]
        command("train", *digits, "--config.network.unet.width=8", "--config.training.batch_size=8")
        command("sample", f"--workdir={folder}/digits", "--n=4", "--nfe=4", "--quiet")
        command("list")
        command("doctor")


def command(*arguments: str) -> None:
    check(f"score-sde {' '.join(arguments)}", main(list(arguments)) == 0)


def check(what: str, holds: bool) -> None:
    if not holds:
        sys.exit(f"{what} is wrong with these versions")


if __name__ == "__main__":
    versions()
    solvers()
    networks()
    commands()
    print(f"score_sde {score_sde.__version__} works with the lowest versions")
