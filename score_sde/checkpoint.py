"""Checkpoints: numbered files of tensors and plain values, written atomically and read without executing anything."""

import pickle
from pathlib import Path
from typing import Any

import torch

from score_sde.files import write_atomically

FORMAT = "score_sde checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or not one of ours; the message says which and what to do."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then remove all but the ``keep`` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.pt.*"):  # of a process that was killed while writing
        leftover.unlink()
    path = folder / f"{step:09d}.pt"
    write_atomically(path, lambda file: torch.save({"format": FORMAT, "step": step, **state}, file))
    for old in _numbered(folder)[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, None where there is none."""
    found = _numbered(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or not one of this project.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    damaged = f"{path} is damaged or not a checkpoint: remove it to continue from the one before it"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values, or is damaged; it was not read") from error
    except Exception as error:  # whatever a file that is no checkpoint makes the reader stumble over
        raise CheckpointError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a file of another program or version, not a {FORMAT!r}")
    return state


def load_weights(module: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load ``weights`` into ``module``; all names and shapes must agree.

    Raises:
        CheckpointError: they do not; the message names the first that differ.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        details = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit the model of this run's config.json: {details[:300]}") from error


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if path.stem.isdigit())
