"""What the readers of other programs' files share: settings by kind, files that execute nothing, and tensors by name."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from score_sde.checkpoint import CheckpointError
from score_sde.run import RunError
from score_sde.tables import did_you_mean

Weights = Mapping[str, Any] | Path | str
"""A state dict, or the file of one."""


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


def with_defaults(settings: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """``settings`` with the defaults of those that are left out.

    Raises:
        RunError: a setting is none of the ``known`` ones of ``owner``.
    """
    for key in settings:
        if key not in known:
            raise RunError(f"{owner} has no setting {key!r}{did_you_mean(key, known)}")
    return {**known, **settings}


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


def state_dict(weights: Weights, allowed: Sequence[Any] = (), within: str | None = None) -> tuple[Mapping[str, Tensor], str]:
    """The tensors by name, and what to call them in messages.

    Args:
        weights: a state dict, or a file, whose tensors are read with what is ``allowed`` besides.
        within: the key under which a checkpoint holds a state dict, where it holds one.

    Raises:
        CheckpointError: the file is damaged, or it holds something else.
    """
    if isinstance(weights, Mapping):
        content, source = weights, "the state dict"
    else:
        content, source = load_file(Path(weights), allowed), str(weights)
    if within is not None and isinstance(content, Mapping) and isinstance(content.get(within), Mapping):
        content = content[within]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} is not the state dict of a network: {name!r} is a {type(tensor).__name__}")
    return content, source


class Entry(NamedTuple):
    """One of our tensors, the ones of another program that it is made of, and the way from those to it and back."""

    own: str
    others: list[str]
    join: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    split: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]


def plain(own: str, other: str) -> Iterator[Entry]:
    """The weight and the bias of a layer that is the same there."""
    for name in ("weight", "bias"):
        yield Entry(f"{own}.{name}", [f"{other}.{name}"])


def cosines_first(own: str, other: str) -> Iterator[Entry]:
    """A linear layer of sines and cosines, which takes the cosines first there and the sines first here."""
    yield Entry(f"{own}.weight", [f"{other}.weight"], lambda tensors: _swapped(tensors[0]), lambda weight: [_swapped(weight)])
    yield Entry(f"{own}.bias", [f"{other}.bias"])


def _swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)


def require_shapes(weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], source: str) -> None:
    """Raise a ``CheckpointError`` unless ``weights`` have tensors of these names and shapes, and of finite values."""
    _complain(source, [n for n in shapes if n not in weights], "lacks {}: it is of another network than the settings describe")
    for name, expected in shapes.items():
        if weights[name].shape != tuple(expected):
            given = f"{tuple(weights[name].shape)}, these settings make it {tuple(expected)}"
            raise CheckpointError(f"{source}: {name} has shape {given}")
        if not weights[name].isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values")


def require_fixed(weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor], source: str) -> None:
    """Raise a ``CheckpointError`` unless ``weights`` have these tensors, which follow from the settings, to 1e-4."""
    require_shapes(weights, {name: tensor.shape for name, tensor in fixed.items()}, source)
    for name, expected in fixed.items():
        if not torch.allclose(weights[name].double(), expected.double(), rtol=1e-4, atol=1e-4):
            raise CheckpointError(f"{source}: {name} holds other values than those that follow from the settings")


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
    entries, own = list(entries), network.state_dict()
    shapes = {n: part.shape for e in entries for n, part in zip(e.others, e.split(own[e.own]), strict=True)}
    require_shapes(weights, shapes, source)
    spare = [name for name in weights if name not in {*shapes, *idle}]
    _complain(source, spare, "has {}, for which the network of these settings has no place")
    for entry in entries:
        own[entry.own] = entry.join([weights[name] for name in entry.others])
    network.load_state_dict(own)


def _complain(source: str, names: list[str], sentence: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{source} " + sentence.format(names[0] + more))
