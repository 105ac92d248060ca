"""What the tests of data share: tensors as sources, and sources as tensors."""

import torch

from score_sde.data import DataSource, DataSpec, TensorSource, read


def every(source: DataSource) -> torch.Tensor:
    """All values of a source."""
    return read(source, slice(None)).values


def continuous(values: torch.Tensor) -> TensorSource:
    """Continuous data whose scaling is not measured yet."""
    return TensorSource(values, DataSpec(tuple(values.shape[1:])))


def sorted_rows(values: torch.Tensor) -> list[tuple]:
    """The samples of a tensor, whatever their order."""
    return sorted(map(tuple, values.flatten(1).tolist()))
