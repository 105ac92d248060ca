"""The run, the solver, the device and the class that a command line chooses."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import torch

from score_sde.cli.data import class_index
from score_sde.cli.effect import key_of, refuse_sections
from score_sde.config import ConfigDict, ConfigError, from_saved, override
from score_sde.distributed import local_rank
from score_sde.files import remove_leftovers
from score_sde.run import Run, build_solver, load, load_tuned
from score_sde.solvers import SOLVERS, Solver
from score_sde.tables import require_name

FREE_TO_CHANGE = ("objective", "training", "solver", "likelihood")
"""Sections of the config that may change when a run is continued."""


def load_run(options: argparse.Namespace, overrides: list[str]) -> tuple[Run, ConfigDict]:
    """The run, and its config with overrides of the sections that the command reads."""
    device, edited = pick_device(options.device), options.accept_edited_config
    run = load(options.workdir, device=device, accept_edited_config=edited)
    config = override(from_saved(run.config), overrides)  # first: a misspelt key is named as one
    refuse_sections(overrides, options.sections, options.command)
    remove_leftovers(run.folder)
    options.class_ = class_index(run, getattr(options, "class_", None))
    return run, config


def pick_solver(config: ConfigDict, name: str | None, run: Run, class_: int | None = None, clip: tuple | None = None) -> Solver:
    """The solver of that name, or the config's; ``tuned`` are those that were chosen for the run, the class and the clip."""
    if (name or config.solver.name) == "tuned":
        return load_tuned(run.folder, class_=class_, clip=clip, step=run.step, identity=run.identity)
    if name is not None:
        require_name("solver", name, [*SOLVERS, "tuned"])
        config.solver.name = name
    return build_solver(config.to_dict())


def refuse_options_of_tuned(overrides: list[str]) -> None:
    for argument in overrides:
        if key_of(argument).startswith("solver.") and key_of(argument) != "solver.name":
            raise ConfigError(f"{argument}: solvers that were tuned have their options already; choose one by --solver=NAME")


def read_budgets(text: str) -> list[int]:
    """Numbers of evaluations from the command line, in rising order."""
    try:
        return sorted({int(nfe) for nfe in text.split(",")})
    except ValueError:
        raise ConfigError(f"--nfe takes numbers of evaluations separated by commas, got {text!r}") from None


def pick_clip(options: argparse.Namespace) -> bool | tuple[float, float]:
    """How ``--clip`` says that x0 is clipped."""
    return False if options.clip is None else (options.clip or True)


def pick_device(name: str | None) -> torch.device:
    gpus = torch.cuda.device_count()
    own = f"cuda:{local_rank() % gpus}" if gpus else "cpu"  # each process of torchrun its own
    try:
        device = torch.device(name or own)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def architecture(config: Mapping, model: torch.nn.Module) -> str:
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    classes = f" and {model.classes} classes" if model.classes else ""
    return f"{config['sde']['name']} SDE, {config['network']['name']} with {weights:.2f} M parameters{classes}"


def likelihood_of_a_file(folder: Path) -> str:
    return f"likelihood --workdir={quote(str(folder))} --data=FILE.npy"
