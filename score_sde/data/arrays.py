"""Data from ``.npy`` and ``.npz`` files."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_sde.data.dataset import Dataset, split, standardized
from score_sde.data.spec import DataError, DataSpec


def array_file(
    path: str = "",
    key: str = "",
    shape: tuple[int, ...] = (),
    levels: int = 0,
    dequantize: bool = True,
    model_range: tuple[float, float] = (-1.0, 1.0),
    classes: str = "",
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """An array ``(N, *D)`` from a ``.npy`` or ``.npz`` file.

    Floating-point data is continuous and scaled to standard deviation 1, unless ``levels`` says how many integers it takes;
    8-bit data has 256 levels unless ``levels`` says otherwise.

    Args:
        path: the file.
        key: the array inside a ``.npz`` that holds several.
        shape: event shape to give each sample, such as (1, 28, 28) for images stored without a channel.
        levels: number of integer values, 0 to derive it.
        model_range: the interval onto which integers are mapped.
        classes: the array ``(N,)`` of class indices in the same ``.npz``; empty for none.
    """
    values = load_array(path, key)
    if shape:
        if min(shape) < 1 or math.prod(shape) != math.prod(values.shape[1:]):
            raise DataError(f"samples of {path} have shape {tuple(values.shape[1:])}, which does not fill {tuple(shape)}")
        values = values.reshape(len(values), *shape)
    event = tuple(values.shape[1:])
    if values.is_floating_point() and not levels:
        if not values.isfinite().all():
            raise DataError(f"{path} holds NaN or infinite values; remove or replace them")
        spec = standardized(values)
    elif values.dtype == torch.uint8 or levels:
        spec = DataSpec(event, levels=levels or 256, dequantize=dequantize, model_range=model_range)
    else:
        raise DataError(
            f"{path} holds integers of type {str(values.dtype)[6:]}: say how many levels, --config.data.file.levels="
        )
    spec.check(values, path)
    return split(values, spec, test_fraction, seed, _load_classes(path, classes, len(values)) if classes else None)


def _load_classes(path: str, key: str, count: int) -> Tensor:
    classes = _load(path, key)
    if classes.shape != (count,) or classes.dtype.kind not in "iu" or classes.min() < 0:
        given = f"{classes.dtype} of shape {classes.shape}"
        raise DataError(f"{key} in {path} must hold {count} class indices from 0 on, one per sample, got {given}")
    return torch.from_numpy(classes.astype(np.int64))


def load_array(path: str, key: str = "") -> Tensor:
    """The array in a ``.npy`` or ``.npz`` file, without executing anything that the file may hold.

    Raises:
        DataError: there is no such file, it is not an array of numbers, it holds several arrays and ``key`` names none
            of them, or the array is empty or has no event dimension.
    """
    loaded = _load(path, key)
    if loaded.dtype == np.float16:
        loaded = loaded.astype(np.float32)
    if loaded.dtype.kind not in "fiub" or loaded.dtype.itemsize > 8:
        raise DataError(f"{path} holds values of type {loaded.dtype}; real numbers or integers are needed")
    if loaded.dtype.kind == "u" and loaded.dtype.itemsize > 1:
        loaded = loaded.astype(np.int64)
    if not loaded.size:
        raise DataError(f"{path} is empty: its shape is {loaded.shape}")
    if loaded.ndim < 2:
        raise DataError(f"{path} has shape {loaded.shape}; the first dimension counts samples, at least one more is needed")
    values = torch.from_numpy(np.ascontiguousarray(loaded.astype(loaded.dtype.newbyteorder("="))))
    return values.to(torch.uint8) if values.dtype == torch.bool else values


def _load(path: str, key: str) -> np.ndarray:
    if not path:
        raise DataError("no file given: --config.data.file.path=mine.npy")
    if not Path(path).is_file():
        raise DataError(f"{path} not found")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            if key not in names and (key or len(names) != 1):
                how = "choose one by its key, --config.data.file.key= (--key= for a likelihood)"
                raise DataError(f"{path} holds {', '.join(names) or 'no array'}: {how}")
            loaded = loaded[key or names[0]]
    except DataError:
        raise
    except Exception as error:  # of numpy, zipfile, zlib or tokenize, depending on where the file is damaged
        raise DataError(f"{path} is not a .npy or .npz file of numbers") from error
    if not isinstance(loaded, np.ndarray):  # what a zip file holds beside arrays
        raise DataError(f"{path} is not a .npy or .npz file of numbers")
    return loaded
