"""``model.safetensors``: the weights of a run that has no checkpoints, as an import or an export makes it."""

from pathlib import Path

import torch

from score_sde.checkpoint import CheckpointError, load_weights
from score_sde.files import DamagedError, read_safetensors
from score_sde.model import ScoreModel

WEIGHTS = "model.safetensors"
"""File of the weights."""


def load_initial_weights(folder: Path, model: ScoreModel) -> None:
    """Load the weights of an imported or exported model into ``model``."""
    path = folder / WEIGHTS
    load_weights(model, read_weights(path, model.device)[0], path)


def read_weights(path: Path, device: torch.device | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights in a ``model.safetensors``, and the words about them."""
    try:
        weights, metadata = read_safetensors(path, device)
    except DamagedError as error:
        raise CheckpointError(str(error)) from error
    if not metadata.get("step", "0").isdecimal():
        raise CheckpointError(f"{path} says that it is of step {metadata['step'][:40]!r}")
    return weights, metadata
