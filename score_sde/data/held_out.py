r"""Which samples are held out, decided by what they hold.

Each sample has a key in [0, 1), a hash of the seed and its values. It is held out where

    key(seed, values) < fraction

So a sample stays on its side when others are added or the file is sorted anew, and copies of a sample lie on the same side.
The order of the samples is that of their keys. About ``fraction`` of the samples are held out, not exactly as many.

Values count, not how they are stored: a file that is saved anew in wider numbers, or in another byte order, has the same keys.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from score_sde.data.source import DataSource, blocks

SPLITS = ("content", "position")
"""By what samples are held out: what they hold, or their place in a shuffled list."""


def by_content(source: DataSource, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of what is trained on and of what is held out, each in the order of the keys.

    Something is held out, and of each class something is trained on. Where there would be nothing, copies of a sample are told
    apart by their number, and if that does not help, as it may not with few samples, the nearest key is taken.
    """
    levels = source.spec.levels
    keys = np.concatenate([sample_keys(block.values, levels, seed) for block in blocks(source, "held-out samples")])
    told = np.zeros(len(keys)) if source.classes is None else source.classes.numpy()
    order = np.lexsort((told, keys))  # among copies the class decides, so that the order of the file never does
    keys = keys[order]
    drawn = sample_keys(torch.from_numpy(np.stack([keys, _copy_numbers(keys)], 1)), None, seed)
    groups = [np.flatnonzero(told[order] == number) for number in np.unique(told)]
    held_out = keys < fraction
    for group in groups:
        if held_out[group].all():
            held_out[group] = drawn[group] < fraction
    if not held_out.any():
        held_out = drawn < fraction
    for group in groups:
        if held_out[group].all():
            held_out[group[drawn[group].argmax()]] = False
    if not held_out.any():
        held_out[drawn.argmin()] = True
    return torch.from_numpy(order[~held_out]), torch.from_numpy(order[held_out])


def sample_keys(values: Tensor, levels: int | None, seed: int) -> np.ndarray:
    """The key of each of ``values`` ``(N, *D)``, integers of so many ``levels`` or continuous: in [0, 1), float64."""
    salt = str(seed).encode()
    hashes = [hashlib.blake2b(row, digest_size=8, key=salt).digest() for row in row_bytes(values, levels)]
    return (np.frombuffer(b"".join(hashes), "<u8") >> np.uint64(11)) * 2.0**-53


def row_bytes(values: Tensor, levels: int | None) -> np.ndarray:
    """Samples as rows of bytes: a byte for each integer of up to 256 levels, else 64-bit integers or floats."""
    kind = torch.float64 if levels is None else torch.uint8 if levels <= 256 else torch.int64
    rows = values.flatten(1).to(kind)
    if levels is None:
        rows = rows + 0.0  # -0.0 becomes 0.0
    array = np.ascontiguousarray(rows.numpy())
    return array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _copy_numbers(keys: np.ndarray) -> np.ndarray:
    """For each of the keys, which rise, how many equal ones come before it."""
    place = np.arange(len(keys))
    begins = np.concatenate([[True], keys[1:] > keys[:-1]])
    return place - np.maximum.accumulate(np.where(begins, place, 0))
