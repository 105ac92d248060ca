"""Data from ``.npy`` and ``.npz`` files."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_sde.data.dataset import Dataset, split
from score_sde.data.layout import arranged
from score_sde.data.source import TensorSource
from score_sde.data.spec import DataError, DataSpec, DataWarning
from score_sde.files import DamagedError, ReadError, check_sealed

LARGEST = 1e30
"""Beyond it, and below its inverse, numbers cannot be scaled in float32."""


class Arrays(dict[str, np.ndarray]):
    """Named arrays in memory, in the place of a ``.npz``. Messages call them ``the data``."""

    def __str__(self) -> str:
        return "the data"


def array_file(
    path: str | Arrays = "",
    key: str = "",
    shape: tuple[int, ...] = (),
    layout: str = "",
    levels: int = 0,
    dequantize: bool = True,
    model_range: tuple[float, float] = (-1.0, 1.0),
    classes: str = "",
    test_fraction: float = 0.1,
    seed: int = 0,
    held_out_by: str = "content",
    limits: tuple[float, ...] = (),
    test: str = "",
    test_classes: str = "",
) -> Dataset:
    """An array ``(N, *D)`` from a ``.npy`` or ``.npz`` file, or from memory.

    Floating-point data is continuous, unless ``levels`` says how many integers it takes. ``standardized`` scales it: vectors by
    coordinate, anything else by channel. 8-bit data has 256 levels and a mask of booleans 2, unless ``levels`` says otherwise.

    Args:
        path: the file, or the arrays.
        key: the array inside a ``.npz`` that holds several.
        shape: event shape to give each sample, such as (1, 28, 28) for images stored flat or without a channel.
        layout: what the axes of a stored sample are, ``channels_first``, ``channels_last`` or ``no_channel``; empty where
            that is certain, as ``score_sde.data.layout`` explains.
        levels: number of integer values, 0 to derive it.
        model_range: the interval onto which integers are mapped.
        classes: the array ``(N,)`` of class indices in the same ``.npz``; empty for none.
        test_fraction, seed, held_out_by: how much is held out, and by what, as ``score_sde.data.dataset.split`` explains.
        limits: smallest and largest value of continuous data, in which it is drawn and may be clipped; by default those of each
            coordinate or channel of what is trained on.
        test, test_classes: the arrays of held-out samples and of their classes in the same ``.npz``; empty to hold out a part.

    Raises:
        DataError: the file cannot be used, or what it holds is not certain; the message says what to write.
    """
    loaded = _numbers(path, key)
    values = arranged(_tensor(loaded), str(path), shape=tuple(shape), layout=layout)
    event = tuple(values.shape[1:])
    if values.is_floating_point() and not levels:
        _check_floats(values, path)
        spec = DataSpec(event)
    elif loaded.dtype == np.uint8 or loaded.dtype == bool or levels:
        known = 2 if loaded.dtype == bool else 256
        spec = DataSpec(event, levels=levels or known, dequantize=dequantize, model_range=model_range)
        spec.check(values, str(path))
    else:
        raise DataError(f"{path} holds integers of type {loaded.dtype}: say how many levels", remedy=("file.levels", "K"))
    if loaded.dtype == np.uint8 and not levels and 0 < values.max() < 32:
        _warn_of_few_levels(path, int(values.max()))
    indices = _load_classes(path, classes, len(values)) if classes else None
    source = TensorSource(values, spec, indices)
    if test:
        held_out = arranged(_tensor(_numbers(path, test)), str(path), shape=tuple(shape), layout=layout)
        spec.check(held_out, str(path))
        known = _load_classes(path, test_classes, len(held_out)) if test_classes else None
        data = Dataset(source, TensorSource(held_out, spec, known))
    else:
        data = split(source, test_fraction, seed, by=held_out_by)
    if spec.levels is None:
        data = data.standardized()
    if not limits:
        return data
    if spec.levels is not None or len(limits) != 2 or not limits[0] < limits[1]:
        raise DataError(f"limits are the smallest and the largest value of continuous data, got {limits}")
    return data.described(replace(data.spec, limits=(limits,)))


def _check_floats(values: Tensor, path: str | Arrays) -> None:
    """Refuse what cannot be scaled; warn where numbers that are whole are taken as continuous."""
    if not values.isfinite().all():
        raise DataError(f"{path} holds NaN or infinite values; remove or replace them")
    largest = max(abs(values.min().item()), abs(values.max().item()))
    if largest and not 1 / LARGEST < largest < LARGEST:
        raise DataError(f"{path} holds values up to {largest:.3g}: give them in a unit in which they are nearer to 1")
    if (values[:1000] == values[:1000].round()).all() and (values == values.round()).all():
        message = (
            f"{path} holds whole numbers stored as {str(values.dtype)[6:]}, which are taken as continuous: if they are "
            "integers 0 to K - 1, such as grey values, give levels=K"
        )
        warnings.warn(DataWarning(message, remedy=("file.levels", "K")), stacklevel=3)


def _warn_of_few_levels(path: str | Arrays, largest: int) -> None:
    message = f"{path} holds 8-bit integers up to {largest} and is taken to have 256 levels: if it has fewer, give levels"
    warnings.warn(DataWarning(message, remedy=("file.levels", str(largest + 1))), stacklevel=3)


def _load_classes(path: str | Arrays, key: str, count: int) -> Tensor:
    classes = _load(path, key)
    whole = classes.dtype.kind in "iu" and classes.shape == (count,)
    if not whole or classes.min() < 0 or classes.max() >= 2**31:
        given = f"{classes.dtype} of shape {classes.shape}"
        raise DataError(f"{key} in {path} must hold {count} class indices from 0 on, one per sample, got {given}")
    return torch.from_numpy(classes.astype(np.int64))


def load_array(path: str, key: str = "") -> Tensor:
    """The array in a ``.npy`` or ``.npz`` file, without executing anything that the file may hold.

    Raises:
        DataError: there is no such file, it is not an array of numbers, it holds several arrays and ``key`` names none
            of them, or the array is empty or has no event dimension.
    """
    return _tensor(_numbers(path, key))


def _tensor(loaded: np.ndarray) -> Tensor:
    """The same values in a type that torch computes with."""
    kind, bits = loaded.dtype.kind, 8 * loaded.dtype.itemsize
    if kind == "f" and bits == 16:
        loaded = loaded.astype(np.float32)
    if kind == "u" and bits > 8:
        loaded = loaded.astype(np.int64)
    if kind == "b":
        loaded = loaded.astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(loaded.astype(loaded.dtype.newbyteorder("="))))


def _numbers(path: str | Arrays, key: str) -> np.ndarray:
    """The array of a file, in the type in which it is stored."""
    loaded = _load(path, key)
    if loaded.dtype.kind not in "fiub":
        raise DataError(f"{path} holds values of type {loaded.dtype}; real numbers or integers are needed")
    if loaded.dtype.itemsize > 8:
        raise DataError(f"{path} holds values of type {loaded.dtype}; store them as float64")
    if not loaded.size:
        raise DataError(f"{path} is empty: its shape is {loaded.shape}")
    if loaded.ndim < 2:
        raise DataError(f"{path} has shape {loaded.shape}; the first dimension counts samples, at least one more is needed")
    if loaded.dtype.kind == "u" and loaded.max() >= 2**63:
        raise DataError(f"{path} holds integers up to {loaded.max()}, which do not fit into 64 bits with a sign")
    return loaded


def _load(path: str | Arrays, key: str) -> np.ndarray:
    if isinstance(path, Arrays):
        return path[key]
    if not path:
        raise DataError("no file given: path is empty", remedy=("file.path", "mine.npy"))
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{path} is no file" if file.exists() else f"{file.absolute()} not found")
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            check_sealed(file)  # numpy checks no more of an archive than what it needs of it
            names = loaded.files
            if key not in names and (key or len(names) != 1):
                held = f"holds {', '.join(names)}: choose one by its key" if names else "holds no array"
                raise DataError(f"{path} {held}", remedy=("file.key", names[0]) if names else None)
            loaded = loaded[key or names[0]]
        elif key:
            raise DataError(f"{path} holds one array without a name: leave {key!r} away, or store both in a .npz file")
    except (DataError, ReadError):
        raise
    except DamagedError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # of numpy, zipfile, zlib or tokenize, depending on where the file is damaged
        raise DataError(f"{path} is not a .npy or .npz file of numbers") from error
    if not isinstance(loaded, np.ndarray):  # what a zip file holds beside arrays
        raise DataError(f"{path} is not a .npy or .npz file of numbers")
    return loaded
