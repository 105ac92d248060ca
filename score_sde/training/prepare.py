"""A run directory made ready for training, for the command and for ``fit`` alike."""

from pathlib import Path
from typing import Any

import torch

from score_sde.checkpoint import latest_checkpoint
from score_sde.data import Dataset, DataSpec, fingerprint, moments, root_mean_square, scaled_alike
from score_sde.run import (
    WEIGHTS,
    KnownData,
    RunError,
    build_model,
    build_objective,
    has_moments,
    load_begun,
    load_config,
    load_identity,
    load_initial_weights,
    load_known_data,
    new_identity,
    save_config,
    save_moments,
)
from score_sde.training.hooks import STANDARD_HOOKS
from score_sde.training.options import TrainingOptions
from score_sde.training.state import begin, resume
from score_sde.training.trainer import Trainer


def prepare(
    folder: Path, config: dict[str, Any], data: Dataset, *, device: torch.device | str, accept_edited_config: bool = False
) -> tuple[Trainer, KnownData]:
    """The training of the run in ``folder``: from its newest checkpoint, its imported weights, or the beginning.

    Nothing is written yet. With the training comes what ``write_run`` writes of the data.

    Args:
        folder: the run's; it may hold nothing.
        config: plain values; ``model.sigma_data`` is measured and set where it is None.
        data: what the config names.
        device: where to train.
        accept_edited_config: whether ``config.json`` may have been edited by hand.

    Raises:
        RunError: the data is not that which the run was trained on.
        CheckpointError: the checkpoints are not those of this run.
        ValueError: an option is refused.
    """
    resumed, pretrained = latest_checkpoint(folder / "checkpoints") is not None, (folder / WEIGHTS).exists()
    known = KnownData(fingerprint(data), data.class_names)
    before = load_known_data(folder, accept_edited_config=accept_edited_config).fingerprint if resumed else ""
    if before not in ("", known.fingerprint):
        raise RunError(
            f"the data is not that which {folder} was trained on: samples, classes or what is held out have changed since; "
            "restore it to continue, or train on the new data in another directory"
        )
    if resumed or pretrained:
        data = _as_before(data, load_config(folder, accept_edited_config=accept_edited_config)[1], folder)
    if config["model"]["sigma_data"] is None:
        config["model"]["sigma_data"] = root_mean_square(data.train)
    model, objective = build_model(config, data.spec), build_objective(config)
    if pretrained and not resumed:
        load_initial_weights(folder, model)
    options = TrainingOptions(**config["training"])
    identity = load_identity(folder, accept_edited_config=accept_edited_config)
    state = begin(model, objective, options, device=device, pretrained=pretrained, identity=identity)
    state = resume(folder, state)
    return Trainer(state, data, folder, options, objective, hooks=STANDARD_HOOKS, seed=config["seed"]), known


def about_earlier(folder: Path, *, accept_edited_config: bool = False) -> str:
    """A sentence on what an older version trained of the run in ``folder``; nothing where this version began it."""
    begun = load_begun(folder, accept_edited_config=accept_edited_config)
    if begun is None:
        return ""
    return f"an earlier version trained it to step {begun.steps}: since then random numbers are drawn in another way"


def write_run(trainer: Trainer, config: dict[str, Any], known: KnownData) -> None:
    """Write ``config.json``, with what is ``known`` of the data, and its moments; give the run its identity."""
    folder, state, data = trainer.folder, trainer.state, trainer.data
    state.identity = state.identity or new_identity()
    save_config(folder, config, data.spec, identity=state.identity, known_data=known)
    if not state.checkpoint or not has_moments(folder, identity=state.identity):
        save_moments(folder, moments(data.train), identity=state.identity)


def _as_before(data: Dataset, known: DataSpec, folder: Path) -> Dataset:
    """The data of a run that goes on, with the description that the run has: its scaling stays what it was."""
    found, differing = data.spec, ""
    for name in ("shape", "levels", "dequantize", *(() if found.spread else ("model_range",))):
        if getattr(found, name) != getattr(known, name):
            differing += f"{', ' if differing else ''}{name} {getattr(found, name)} for {getattr(known, name)}"
    if not differing and found.spread and not scaled_alike(data, known):
        differing = "its coordinates have other means or standard deviations"
    if differing:
        raise RunError(f"the data is not that which {folder} was trained on: {differing}")
    return data.described(known)
