"""Checkpoints: numbered files of tensors and plain values, written atomically and read without executing anything.

Each ends in a digest of its content (``score_sde.files``). Where the newest is damaged, the one before it is used.
"""

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.files import DamagedError, check_sealed, is_pickle, remove_leftovers, write_sealed
from score_sde.tensors import ran_out_of_memory

FORMAT = "score_sde checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or not one of ours; the message says which and what to do."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not as it was written: one before it may be sound."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``, and read it again; then remove all before it but ``keep`` - 1.

    Raises:
        WriteError: it cannot be written, or not be read again; the checkpoints before it are as they were.
    """
    remove_leftovers(folder)
    path = folder / f"{step:09d}.pt"
    write_sealed(path, lambda file: torch.save({"format": FORMAT, "step": step, **state}, file))
    before = [old for old in _numbered(folder) if int(old.stem) < step]
    for old in before[: len(before) - keep + 1]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, sound or not; None where there is none."""
    found = _numbered(folder)
    return found[-1] if found else None


def load_newest(folder: Path, device: torch.device | str = "cpu") -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that is sound, and what it holds; None where there is no checkpoint.

    A warning names those that are damaged and newer.

    Raises:
        CheckpointError: none is sound, or the newest is not damaged but of another program.
        OSError: one cannot be read; that does not say that it is damaged.
    """
    damaged: list[Path] = []
    first: DamagedCheckpoint | None = None
    for path in reversed(_numbered(folder)):
        try:
            state = load_checkpoint(path, device)
        except DamagedCheckpoint as error:
            first = first or error
            damaged.append(path)
            continue
        if damaged:
            names = ", ".join(map(str, damaged))
            warnings.warn(f"{names} is damaged; {path.name} is used instead, which was written before", stacklevel=2)
        return path, state
    if len(damaged) > 1:
        raise DamagedCheckpoint(f"every checkpoint is damaged: {', '.join(map(str, damaged))}; restore one from a copy")
    if first is not None:
        raise first
    return None


def set_aside(folder: Path, newest: Path) -> None:
    """Rename the damaged checkpoints after ``newest``, the newest sound one, so that later ones can take their names."""
    for path in _numbered(folder):
        if int(path.stem) > int(newest.stem):
            path.rename(path.with_suffix(".pt.damaged"))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are accepted.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, or not one of this project.
        DamagedCheckpoint: it is not as it was written.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    damaged = f"{path} is damaged or not a checkpoint: restore it from a copy"
    try:
        if not is_pickle(path):
            check_sealed(path)
    except DamagedError as error:
        raise DamagedCheckpoint(f"{error}; restore it from a copy") from error
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values, or is damaged; it was not read") from error
    except Exception as error:  # whatever a file that is no checkpoint makes the reader stumble over
        if ran_out_of_memory(error):
            raise
        raise DamagedCheckpoint(damaged) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a file of another program or version, not a {FORMAT!r}")
    if type(state.get("step")) is not int or state["step"] != int(path.stem):
        raise CheckpointError(f"{path} says that it is of step {str(state.get('step'))[:40]}, and its name says {path.stem}")
    return state


def check_training_state(state: dict[str, Any], path: Path) -> None:
    """Check the parts that a training run's checkpoint has beside weights and optimizer.

    Raises:
        CheckpointError: one is missing, or not of its type or range.
    """
    missing = {"model", "ema", "ema_updates", "optimizer", "pending", "seconds"} - set(state)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}: it is not a checkpoint of a training run")
    seconds, pending, learned = state["seconds"], state["pending"], state.get("objective", {})  # 0.1.0 wrote none
    sound = {
        "ema_updates": type(state["ema_updates"]) is int and state["ema_updates"] == state["step"],
        "seconds": type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0,
        "pending": isinstance(pending, Tensor)
        and pending.is_floating_point()
        and pending.ndim == 2
        and pending.shape[1] >= 2
        and len(pending) <= state["step"]
        and bool(pending.isfinite().all()),
        "objective": isinstance(learned, dict)
        and all(isinstance(value, Tensor) and bool(value.isfinite().all()) for value in learned.values()),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise CheckpointError(f"{path} holds {name} = {_brief(state[name])}, which no training run writes")


def same_run(state: dict[str, Any], identity: str | None, path: Path) -> str | None:
    """The identity of the run that a checkpoint belongs to; the checkpoints and configs of early versions have none.

    Raises:
        CheckpointError: it is another than ``identity``.
    """
    found = state.get("run")
    if not isinstance(found, str | None):
        raise CheckpointError(f"{path} holds run = {_brief(found)}, which no training run writes")
    if found and identity and found != identity:
        raise CheckpointError(f"{path} is a checkpoint of another run ({found[:8]}) than this one ({identity[:8]})")
    return identity or found


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load ``weights`` into ``module``; all names and shapes must agree, and all numbers must be finite.

    Raises:
        CheckpointError: they do not; the message names the first that differ.
    """
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds {_brief(weights)} in place of weights")
    own: dict[str, Tensor] = module.state_dict()
    for name, value in own.items():
        found = weights.get(name, value)
        if found.dtype != value.dtype and not (found.is_floating_point() and value.is_floating_point()):
            raise CheckpointError(f"{path} holds {name} as {found.dtype}, and the model has it as {value.dtype}")
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        details = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit the model of this run's config.json: {details[:300]}") from error
    for name, value in module.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"{path} holds NaN or infinite values in {name}")


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, path: Path) -> None:
    """Load what AdamW has gathered for each parameter. Its options stay those that ``optimizer`` was made with.

    Raises:
        CheckpointError: it is not the state of such an optimizer of these parameters.
    """
    fresh = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        count = [len(group["params"]) for group in saved["param_groups"]]
        for index, gathered in saved["state"].items():
            _check_gathered(parameters[index], gathered)
        if count != [len(group["params"]) for group in fresh] or any(index < 0 for index in saved["state"]):
            raise ValueError(f"it is of {sum(count)} parameters, the model has {len(parameters)}")
        optimizer.load_state_dict({"state": saved["state"], "param_groups": fresh})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds an optimizer that is not this run's: {str(error)[:200]}") from error


def _check_gathered(parameter: Tensor, gathered: dict[str, Tensor]) -> None:
    if set(gathered) != {"step", "exp_avg", "exp_avg_sq"}:
        raise ValueError(f"it has {', '.join(map(str, gathered))} in place of Adam's step and moments")
    for name, value in gathered.items():
        shape = () if name == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise ValueError(f"{name} is {_brief(value)}")
        if not value.isfinite().all() or (name != "exp_avg" and (value < 0).any()):
            raise ValueError(f"{name} is out of its range")


def _brief(value: Any) -> str:
    """A value in a few words."""
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)[:60]


def _numbered(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.pt") if path.stem.isdecimal()), key=lambda path: int(path.stem))
