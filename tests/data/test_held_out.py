"""What is held out stays held out, by what it holds; and a fingerprint tells data from other data."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import TensorSource, array_file, digits, fingerprint, image_folder, split
from score_sde.data.held_out import by_content, sample_keys
from tests.data.reading import continuous, every


def rows(source) -> set[tuple]:
    return set(map(tuple, every(source).flatten(1).tolist()))


def with_classes(values, classes):
    return TensorSource(values, continuous(values).spec, classes)


@pytest.fixture
def values():
    return torch.randn(500, 2, dtype=torch.float64)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_added_samples_move_no_other(values, fraction):
    before = split(continuous(values), fraction, 0, by="content")
    more = torch.cat([torch.randn(300, 2, dtype=torch.float64), values.flip(0), torch.randn(200, 2, dtype=torch.float64)])
    after = split(continuous(more), fraction, 0, by="content")
    assert rows(before.test) <= rows(after.test)
    assert rows(before.train) <= rows(after.train)
    assert not rows(after.test) & rows(after.train)
    assert len(after.test) + len(after.train) == 1000
    by_position = split(continuous(more), fraction, 0)
    assert not rows(split(continuous(values), fraction, 0).test) <= rows(by_position.test)  # what this is for


def test_about_the_fraction_is_held_out_and_seeds_differ():
    values = torch.randn(20000, 2)
    for fraction in (0.02, 0.3):
        found = len(split(continuous(values), fraction, 0, by="content").test)
        assert abs(found - 20000 * fraction) < 5 * (20000 * fraction * (1 - fraction)) ** 0.5
    first, second = (rows(split(continuous(values), 0.3, seed, by="content").test) for seed in (0, 1))
    assert 0.2 < len(first & second) / len(first) < 0.4


def test_keys_are_uniform():
    keys = np.sort(sample_keys(torch.arange(10000.0)[:, None], None, 0))
    assert np.abs(keys - (np.arange(10000) + 0.5) / 10000).max() < 1.95 / 100  # Kolmogorov's bound at 0.1 %


def test_the_order_of_a_file_does_not_matter(values):
    values = torch.cat([values[:400], values[:50], values[:50]])  # copies too, of other classes
    classes = torch.arange(500) % 3
    order = torch.randperm(500)
    first = split(with_classes(values, classes), 0.3, 0, by="content")
    second = split(with_classes(values[order], classes[order]), 0.3, 0, by="content")
    for one, other in zip(first[:2], second[:2], strict=True):
        assert torch.equal(every(one), every(other))
        assert torch.equal(one.classes, other.classes)


def test_classes_stay_with_their_samples():
    values = torch.arange(200.0)[:, None]
    data = split(with_classes(values, torch.arange(200) % 7), 0.3, 0, by="content")
    for source in data[:2]:
        assert torch.equal(every(source)[:, 0].long() % 7, source.classes)


def test_copies_lie_on_the_same_side(values):
    data = split(continuous(torch.cat([values, values[:200]])), 0.3, 0, by="content")
    assert not rows(data.train) & rows(data.test)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("distinct", [True, False])
def test_no_side_is_empty(count, distinct):
    for seed in range(20):
        values = torch.arange(float(count))[:, None] if distinct else torch.ones(count, 1)
        train, test = by_content(continuous(values), 0.3, seed)
        assert len(train) > 0
        assert len(test) > 0
        assert sorted(torch.cat([train, test]).tolist()) == list(range(count))


@pytest.mark.parametrize("distinct", [True, False])
def test_each_class_keeps_something_to_train_on(distinct):
    """Classes of five copies of one picture: that picture is held out in about one class of ten, but not all of its copies."""
    classes = torch.arange(60).repeat_interleave(5)
    values = (torch.arange(300.0) if distinct else classes.float())[:, None]
    train, test = by_content(with_classes(values, classes), 0.1, 0)
    assert set(classes[train].tolist()) == set(range(60))
    assert 0 < len(test) < 60


def test_it_does_not_matter_how_values_are_stored(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 200, (50, 3))
    kinds = [np.uint8, np.int64, np.dtype(">i2"), np.float64]
    for i, kind in enumerate(kinds):
        np.save(tmp_path / f"{i}.npy", np.asfortranarray(numbers.astype(kind)) if i % 2 else numbers.astype(kind))
    sets = [array_file(str(tmp_path / f"{i}.npy"), levels=256) for i in range(len(kinds))]
    assert len({fingerprint(data) for data in sets}) == 1
    floats = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "single.npy", floats)
    np.save(tmp_path / "double.npy", floats.astype(np.float64))
    single, double = (array_file(str(tmp_path / f"{name}.npy")) for name in ("single", "double"))
    assert torch.equal(every(single.test).double(), every(double.test))


def test_minus_zero_is_zero():
    assert sample_keys(torch.tensor([[0.0]]), None, 0) == sample_keys(torch.tensor([[-0.0]]), None, 0)


def test_a_fingerprint_tells_data_from_other_data(values):
    def of(values, *, seed=0, classes=None, **options):
        return fingerprint(split(with_classes(values, classes), 0.3, seed, **options))

    changed = values.clone()
    changed[3, 1] += 1e-12
    classes = torch.arange(500) % 3
    other = classes.clone()
    other[7] = 1 - other[7].clamp(max=1)
    found = [
        of(values),
        of(values, by="content"),
        of(changed, by="content"),
        of(values[1:], by="content"),
        of(values, by="content", seed=1),
        of(values, by="content", classes=classes),
        of(values, by="content", classes=other),
    ]
    assert len(set(found)) == len(found)
    assert of(values) == found[0]
    assert fingerprint(digits()) == fingerprint(digits()) != fingerprint(digits(seed=1))


def test_files_and_folders_are_split_by_content(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "a.npy", numbers)
    before = array_file(str(tmp_path / "a.npy"), test_fraction=0.3)
    np.save(tmp_path / "a.npy", np.concatenate([np.random.default_rng(1).normal(size=(50, 2)), numbers]))
    after = array_file(str(tmp_path / "a.npy"), test_fraction=0.3)
    assert rows(before.test) <= rows(after.test)
    assert rows(before.train) <= rows(after.train)
    for i in range(30):
        Image.new("L", (4, 4), 3 * i).save(tmp_path / f"{i}.png")
    before = image_folder(str(tmp_path), channels=1, test_fraction=0.3)
    for i in range(20):
        Image.new("L", (4, 4), 100 + i).save(tmp_path / f"0{i}.png")
    after = image_folder(str(tmp_path), channels=1, test_fraction=0.3)
    assert rows(before.test) <= rows(after.test)
    assert rows(before.train) <= rows(after.train)


@pytest.mark.slow
def test_keys_are_quick():
    """60,000 images of 28 x 28: about 0.2 s."""
    values = torch.randint(0, 256, (60000, 1, 28, 28), dtype=torch.uint8)
    began = time.process_time()
    sample_keys(values, 256, 0)
    assert time.process_time() - began < 2
