"""A data set: what is trained on, what is held out, and its description."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.held_out import SPLITS, by_content, rows_of_bytes
from score_sde.data.scaling import standardized
from score_sde.data.spec import DataError, DataSpec


class Dataset(NamedTuple):
    """Data in its own units, split into what is trained on and what is held out, with its description.

    Where it has classes, ``train_classes`` and ``test_classes`` hold their indices, ``(N,)``, and ``class_names`` what each is
    called, if that is known.
    """

    train: Tensor
    test: Tensor
    spec: DataSpec
    train_classes: Tensor | None = None
    test_classes: Tensor | None = None
    class_names: tuple[str, ...] = ()


def split(
    values: Tensor, spec: DataSpec | None, fraction: float, seed: int, classes: Tensor | None = None, *, by: str = "position"
) -> Dataset:
    """Hold out ``fraction`` of ``values``, and their classes with them.

    Args:
        spec: the description; None for continuous data whose scaling is measured on what is trained on.
        by: ``position`` shuffles and holds out as many as ``fraction`` says. ``content`` holds out about as many, by what they
            hold: a sample stays on its side when others are added.
    """
    if by not in SPLITS:
        raise DataError(f"unknown split {by!r}; choose one of {', '.join(SPLITS)}")
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    held_out = round(fraction * len(values))
    if not 0 < held_out < len(values):
        raise DataError(f"{len(values)} samples are too few to hold out {fraction:.0%} of them")
    if by == "content":
        train, test = by_content(values, spec.levels if spec else None, fraction, seed, classes)
    else:
        order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
        train, test = order[held_out:], order[:held_out]
    both = (None, None) if classes is None else (classes[train], classes[test])
    return Dataset(values[train], values[test], spec or standardized(values[train]), *both)


def scaled_alike(data: Dataset, spec: DataSpec) -> bool:
    """Whether continuous ``data`` has the scaling of ``spec``, which may be one for all coordinates, as it once was."""
    if spec.spread:
        pairs = zip(data.spec.location, data.spec.spread, spec.location, spec.spread, strict=True)
        return all(abs(a - c) <= 1e-6 * d and abs(b - d) <= 1e-6 * d for a, b, c, d in pairs)
    x = spec.scale(torch.cat([data.train, data.test]).double())
    return abs(x.mean().item()) < 1e-5 and abs(x.std().item() - 1) < 1e-5


def fingerprint(data: Dataset) -> str:
    """32 hexadecimal digits that tell data from other data: its values, their order, their classes and the split."""
    digest = hashlib.sha256()
    for values in (data.train, data.test):
        digest.update(f"{tuple(values.shape)} {data.spec.levels}".encode())
        for rows in rows_of_bytes(values, data.spec.levels):
            digest.update(rows)
    for classes in (data.train_classes, data.test_classes):
        digest.update(b"none" if classes is None else classes.long().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]
