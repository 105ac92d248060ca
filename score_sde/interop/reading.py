"""What the readers of other programs' files share: settings by kind, files that execute nothing, and tensors by name."""

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from score_sde.checkpoint import CheckpointError
from score_sde.run import RunError


def setting(settings: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of ``key``, which must be of ``kind``; a whole number may stand for a float, a tuple for a list.

    Raises:
        RunError: there is neither a value nor a default, or the value is of another kind.
    """
    value = settings.get(key, default)
    if value is None:
        raise RunError(f"the settings lack {key!r}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is tuple:
        value = list(value)
    if type(value) is not kind:
        raise RunError(f"{key!r} in the settings must be of type {kind.__name__}, got {value!r}")
    return value


def load_file(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """The content of a file of ``torch.save``: tensors, plain values, and what is ``allowed`` besides. Nothing is executed.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "it is damaged, or not a checkpoint"
        )
        raise CheckpointError(f"{path} was not read, and nothing in it was run: {reason}") from error
    except Exception as error:  # whatever a file that is no checkpoint makes the reader stumble over
        raise CheckpointError(f"{path} is truncated, damaged, or not a checkpoint of PyTorch") from error


class Entry(NamedTuple):
    """One of our tensors, the ones of another program that it is made of, and the way from those to it and back."""

    own: str
    others: list[str]
    join: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    split: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]


def fill(
    network: nn.Module, entries: Iterable[Entry], weights: Mapping[str, Tensor], source: str, *, idle: Iterable[str] = ()
) -> None:
    """Load ``weights``, named as another program does, into ``network``.

    Args:
        entries: all tensors of the network.
        source: where the weights are from, for messages.
        idle: names of weights that have no effect there, and no place here.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite.
    """
    entries = list(entries)
    needed = [name for entry in entries for name in entry.others]
    _complain(source, [n for n in needed if n not in weights], "lacks {}: it is of another network than the settings describe")
    spare = [name for name in weights if name not in {*needed, *idle}]
    _complain(source, spare, "has {}, for which the network of these settings has no place")
    own = network.state_dict()
    for entry in entries:
        tensors = [weights[name] for name in entry.others]
        for name, tensor, expected in zip(entry.others, tensors, entry.split(own[entry.own]), strict=True):
            if tensor.shape != expected.shape:
                shapes = f"{tuple(tensor.shape)}, these settings make it {tuple(expected.shape)}"
                raise CheckpointError(f"{source}: {name} has shape {shapes}")
            if not tensor.isfinite().all():
                raise CheckpointError(f"{source}: {name} holds NaN or infinite values")
        own[entry.own] = entry.join(tensors)
    network.load_state_dict(own)


def _complain(source: str, names: list[str], sentence: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{source} " + sentence.format(names[0] + more))
