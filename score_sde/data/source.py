"""Where samples come from: a source gives any of its rows, in any order, and says what they are.

Nothing but a source knows where its rows lie. A command that reads many of them reads blocks, one after another: the memory
this takes does not depend on how many there are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from score_sde.data.spec import DataError, DataSpec
from score_sde.progress import Progress
from score_sde.tensors import Condition

BLOCK = 1 << 20
"""Numbers that are read at a time."""


class Batch(NamedTuple):
    """Some samples, and what the model is told of each.

    ``values`` is ``(B, *D)``, in data units, as it is stored. ``cond`` is None where there is nothing to tell.
    """

    values: Tensor
    cond: Condition | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device."""
        cond = self.cond
        if isinstance(cond, Mapping):
            cond = {name: told.to(device) for name, told in cond.items()}
        elif cond is not None:
            cond = cond.to(device)
        return Batch(self.values.to(device), cond)


class DataSource(Protocol):
    """Samples that can be read in any order. The same row is always the same sample."""

    @property
    def spec(self) -> DataSpec:
        """What the samples are."""
        ...

    @property
    def classes(self) -> Tensor | None:
        """The class index of every row, int64 ``(N,)``, known without reading values; None where there are no classes."""
        ...

    def __len__(self) -> int:
        """The number of rows ``N``."""
        ...

    def batch(self, rows: Tensor) -> Batch:
        """The samples of ``rows``, int64 ``(B,)`` from 0 to N - 1. They may repeat, and there may be none.

        Raises:
            TypeError: ``rows`` is not a tensor of int64 with one dimension.
            IndexError: there is no such row.
        """
        ...


def check_rows(rows: Tensor, count: int) -> None:
    """Raise what ``DataSource.batch`` raises of ``rows``, unless they are rows of a source of ``count`` samples."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1:
        given = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"rows must be a tensor of int64 with one dimension, got {given}")
    if len(rows):
        low, high = (end.item() for end in rows.aminmax())
        if low < 0 or high >= count:
            raise IndexError(f"rows must lie between 0 and {count - 1}, got {low} to {high}")


@dataclass(frozen=True, eq=False)
class TensorSource:
    """Samples in memory.

    Args:
        values: ``(N, *D)``, in data units.
        spec: what they are.
        classes: class indices ``(N,)``, from 0 on, on the device of the values; None for none.

    Raises:
        DataError: the three do not fit together.
    """

    values: Tensor
    spec: DataSpec
    classes: Tensor | None = None

    def __post_init__(self):
        if tuple(self.values.shape[1:]) != self.spec.shape:
            raise DataError(f"values are samples of shape {tuple(self.values.shape[1:])}, their spec says {self.spec.shape}")
        if self.classes is None:
            return
        if self.classes.dtype != torch.int64 or self.classes.shape != (len(self.values),):
            given = f"{self.classes.dtype} of shape {tuple(self.classes.shape)}"
            raise DataError(f"classes must be int64, one for each of {len(self.values)} samples, got {given}")

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: Tensor) -> Batch:
        check_rows(rows, len(self))
        rows = rows.to(self.values.device, non_blocking=True)
        return Batch(self.values[rows], None if self.classes is None else self.classes[rows])


@dataclass(frozen=True, eq=False)
class View:
    """Another source, seen otherwise: some of its rows, another description, other class indices.

    Args:
        source: where the samples are.
        rows: those that are seen, int64 ``(N,)``, in their order; None for all.
        described: what the samples are said to be; None for what the source says.
        renumbered: the new index of each class, int64 ``(classes,)``; None to leave them.
    """

    source: DataSource
    rows: Tensor | None = None
    described: DataSpec | None = None
    renumbered: Tensor | None = None

    def __post_init__(self):
        if self.rows is not None:
            check_rows(self.rows, len(self.source))

    @property
    def spec(self) -> DataSpec:
        return self.described or self.source.spec

    @property
    def classes(self) -> Tensor | None:
        classes = self.source.classes
        if classes is None:
            return None
        classes = classes if self.rows is None else classes[self.rows]
        return classes if self.renumbered is None else self.renumbered[classes]

    def __len__(self) -> int:
        return len(self.source if self.rows is None else self.rows)

    def batch(self, rows: Tensor) -> Batch:
        check_rows(rows, len(self))
        found = self.source.batch(rows if self.rows is None else self.rows[rows])
        if self.renumbered is None or not isinstance(found.cond, Tensor):
            return found
        return found._replace(cond=self.renumbered[found.cond])


def in_memory(source: DataSource) -> bool:
    """Whether the samples of a source are in memory."""
    return isinstance(source, TensorSource) or (isinstance(source, View) and in_memory(source.source))


def on_device(source: DataSource, device: torch.device) -> DataSource:
    """The same samples, on ``device`` where they are in memory: a batch of them is then there without a copy."""
    if device.type == "cpu" or not in_memory(source):
        return source
    values, classes = read(source, slice(None)).to(device)
    return TensorSource(values, source.spec, classes if isinstance(classes, Tensor) else None)


def check_source(source: DataSource, name: str = "the data") -> None:
    """Raise a ``DataError`` unless all samples of a source are what its description says; ``name`` is what it is called."""
    if not len(source):
        raise DataError(f"{name} is empty")
    for block in blocks(source, "checking the data"):
        source.spec.check(block.values, name)


def read(source: DataSource, rows: slice | Tensor) -> Batch:
    """The samples of a slice or of some rows, all in memory; ``slice(None)`` for every row that there is."""
    if isinstance(rows, slice):
        rows = torch.arange(*rows.indices(len(source)))
    return source.batch(rows)


def blocks(source: DataSource, doing: str) -> Iterator[Batch]:
    """Every row in order, about ``BLOCK`` numbers at a time; where it takes long, a bar says what is ``doing``."""
    size = max(1, BLOCK // source.spec.dim)
    with Progress(doing, len(source), unit="sample", stays=False, delay=3.0) as bar:
        for rows in torch.arange(len(source)).split(size):
            if len(rows):
                yield source.batch(rows)
            bar.update(len(rows))
