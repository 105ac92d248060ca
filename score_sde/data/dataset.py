"""A data set: what is trained on, what is held out, and its description."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.data.held_out import SPLITS, by_content, row_bytes
from score_sde.data.moments import Running
from score_sde.data.scaling import standardized
from score_sde.data.source import DataSource, View, blocks
from score_sde.data.spec import DataError, DataSpec


class Dataset(NamedTuple):
    """A source of what is trained on and one of what is held out; the names of their classes, in order, if they are known."""

    train: DataSource
    test: DataSource
    class_names: tuple[str, ...] = ()

    @property
    def spec(self) -> DataSpec:
        """What the samples of both are."""
        return self.train.spec

    def described(self, spec: DataSpec) -> "Dataset":
        """The same samples, said to be what ``spec`` says."""
        return self._replace(train=View(self.train, described=spec), test=View(self.test, described=spec))

    def renumbered(self, index: Tensor, names: tuple[str, ...]) -> "Dataset":
        """The same samples with ``index[c]``, int64 ``(classes,)``, for class c, and new names."""
        return Dataset(View(self.train, renumbered=index), View(self.test, renumbered=index), names)

    def standardized(self) -> "Dataset":
        """The same samples, continuous ones, with the scaling that is measured on what is trained on."""
        return self.described(standardized(self.train))


def split(source: DataSource, fraction: float, seed: int, *, by: str = "position") -> Dataset:
    """Hold out ``fraction`` of a source.

    Args:
        by: ``position`` shuffles and holds out as many as ``fraction`` says. ``content`` holds out about as many, by what they
            hold: a sample stays on its side when others are added.
    """
    if by not in SPLITS:
        raise DataError(f"unknown split {by!r}; choose one of {', '.join(SPLITS)}")
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    held_out = round(fraction * len(source))
    if not 0 < held_out < len(source):
        raise DataError(f"{len(source)} samples are too few to hold out {fraction:.0%} of them")
    if by == "content":
        train, test = by_content(source, fraction, seed)
    else:
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        train, test = order[held_out:], order[:held_out]
    return Dataset(View(source, rows=train), View(source, rows=test))


def scaled_alike(data: Dataset, spec: DataSpec) -> bool:
    """Whether continuous ``data`` has the scaling of ``spec``, which may be one for all coordinates, as it once was."""
    if spec.spread:
        pairs = zip(data.spec.location, data.spec.spread, spec.location, spec.spread, strict=True)
        return all(abs(a - c) <= 1e-6 * d and abs(b - d) <= 1e-6 * d for a, b, c, d in pairs)
    found = Running()
    for source in (data.train, data.test):
        for block in blocks(source, "scaling"):
            x = spec.scale(block.values.double())
            found.add(x.numel(), x.mean(), (x - x.mean()).square().sum())
    deviation = (found.scatter / (found.count - 1)).sqrt()
    return abs(found.mean.item()) < 1e-5 and abs(deviation.item() - 1) < 1e-5


def fingerprint(data: Dataset) -> str:
    """32 hexadecimal digits that tell data from other data: its values, their order, their classes and the split."""
    digest = hashlib.sha256()
    sources = (data.train, data.test)
    for source in sources:
        digest.update(f"{(len(source), *data.spec.shape)} {data.spec.levels}".encode())
        for block in blocks(source, "fingerprint"):
            digest.update(row_bytes(block.values, data.spec.levels).data)
    for source in sources:
        digest.update(b"none" if source.classes is None else source.classes.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]
