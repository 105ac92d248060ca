"""The largest distance of two samples is that of all pairs, in model coordinates and in bounded memory."""

import pytest
import torch

from score_sde.data import DataSpec, TensorSource, largest_distance
from score_sde.data import distances as module
from tests.reference.ncsn import answers


def test_the_published_answer():
    given = answers("techniques")
    found = largest_distance(TensorSource(given["data"], DataSpec((2, 3))))
    assert found.value == pytest.approx(given["sigma_max"].item(), rel=1e-12)
    assert found.rows == tuple(given["pair"].tolist())
    assert found.compared == 24


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1, 2), (1, 2, 1, 2)], ids=str)
def test_blocks_give_what_all_pairs_give(shape, monkeypatch):
    """Of continuous data with a scaling, where a block is a few samples; and of integers, dequantized or not."""
    monkeypatch.setattr(module, "BLOCK", 30)
    spreads = {"location": (5.0,) * shape[0], "spread": tuple(range(1, shape[0] + 1))}
    spec, values = DataSpec(shape, **spreads), 100 + torch.randn(61, *shape)
    found = largest_distance(TensorSource(values, spec))
    every = torch.cdist(spec.scale(values.double()).flatten(1), spec.scale(values.double()).flatten(1))
    assert found.value == pytest.approx(every.max().item(), rel=1e-9)
    assert every[found.rows].item() == pytest.approx(found.value, rel=1e-9)
    integers = torch.randint(5, (61, *shape))
    for dequantize, width in ((True, 2 / 5), (False, 2 / 4)):
        found = largest_distance(TensorSource(integers, DataSpec(shape, levels=5, dequantize=dequantize)))
        every = torch.cdist(integers.double().flatten(1), integers.double().flatten(1))
        assert found.value == pytest.approx(width * every.max().item(), rel=1e-9)


def test_many_samples_are_drawn_from():
    values = torch.randn(300, 2)
    source = TensorSource(values, DataSpec((2,)))
    found, again, whole = largest_distance(source, at_most=100), largest_distance(source, at_most=100), largest_distance(source)
    assert found == again
    assert found.compared == 100
    assert 0.5 * whole.value < found.value <= whole.value
    assert largest_distance(source, at_most=100, seed=1).rows != found.rows
    with pytest.raises(ValueError, match="two samples, there are 1"):
        largest_distance(TensorSource(values[:1], DataSpec((2,))))
