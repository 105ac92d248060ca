"""What the tests of data share: tensors as sources, and sources as tensors."""

import torch

from score_sde.data import DataSource, DataSpec, TensorSource, read


def every(source: DataSource) -> torch.Tensor:
    """All values of a source."""
    return read(source, slice(None)).values


def continuous(values: torch.Tensor) -> TensorSource:
    """Continuous data whose scaling is not measured yet."""
    return TensorSource(values, DataSpec(tuple(values.shape[1:])))
