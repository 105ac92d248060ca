"""An attack on arrays: every value arrives where it belongs, or the file is refused by its name."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from score_sde.data import DataError, array_file
from tests.data.reading import every

pytestmark = pytest.mark.slow

SIDES = (1, 2, 3, 4, 5, 9)
EVENTS = [event for rank in (1, 2, 3) for event in itertools.product(SIDES, repeat=rank)]
COUNT = 6


def read(path, **options):
    """What the file gives, in the order in which it is stored; None where it is refused by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, refusal = None, ""
        try:
            data = array_file(str(path), test_fraction=0.5, **options)
        except DataError as error:  # any other error is a failure
            refusal = str(error)
    if data is None:
        assert path.name in refusal
        return None
    values = torch.cat([every(data.train), every(data.test)]).numpy()
    return values[values.reshape(len(values), -1)[:, 0].argsort()], data.spec


def numbered(path, event) -> np.ndarray:
    """Samples of which every value is its place."""
    values = np.arange(COUNT * int(np.prod(event)), dtype=np.int64).reshape(COUNT, *event)
    np.save(path, values)
    return values


def flat(values) -> np.ndarray:
    return values.reshape(len(values), -1)


def test_axes_are_moved_only_as_they_are_named(tmp_path):
    """All events of up to three axes, each with every layout."""
    path, taken = tmp_path / "a.npy", 0
    for event in EVENTS:
        values = numbered(path, event)
        levels = values.size + 1
        moved = {
            "channels_first": values,
            "channels_last": np.moveaxis(values, -1, 1) if len(event) > 1 else None,
            "no_channel": values[:, None],
        }
        for layout, wanted in moved.items():
            found = read(path, levels=levels, layout=layout)
            assert (found is None) == (wanted is None), (event, layout)
            if found:
                np.testing.assert_array_equal(found[0], wanted)
                assert found[1].shape == wanted.shape[1:]
        found = read(path, levels=levels)
        if found:
            taken += 1
            np.testing.assert_array_equal(found[0], values)
            few = event[0] <= 4 and not (len(event) > 1 and event[0] >= max(event[1:]) > 1)
            assert len(event) == 1 or few or event[0] == 1, event
    assert 15 < taken < 100


def test_a_shape_never_mixes_values_up(tmp_path):
    """All pairs of an event and a shape of as many values: what is taken keeps the order of the values, and of which axis."""
    path = tmp_path / "a.npy"
    for event in EVENTS:
        values = numbered(path, event)
        sides = [side for side in event if side > 1]
        for shape in EVENTS:
            if np.prod(shape) != np.prod(event):
                continue
            found = read(path, levels=values.size + 1, shape=shape)
            wanted = [side for side in shape if side > 1]
            if found:
                np.testing.assert_array_equal(flat(found[0]), flat(values))
                assert found[1].shape == shape
                assert sides == wanted or len(wanted) < 2 or (len(sides) < 2 and shape[0] == 1), (event, shape)
            else:
                assert sides != wanted, (event, shape)


KINDS = ["?", "u1", "i1", "<u2", ">u2", "<i2", ">i4", "<u4", "<i8", ">i8", "<u8", ">u8", "<f2", ">f4", "<f4", ">f8", "<f8"]
REFUSED = ["g", "c8", "c16", "O", "S3", "U3", "M8[D]", "m8[s]", "V4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_numbers_of_every_kind_keep_their_values(tmp_path, kind, order):
    values = np.arange(COUNT * 4).reshape(COUNT, 4).astype(kind)
    values = np.asfortranarray(values) if order == "F" else values[:, ::-1] if order == "reversed" else values
    np.save(tmp_path / "a.npy", values)
    found, spec = read(tmp_path / "a.npy", levels=COUNT * 4)
    wanted = values.astype(np.float64)
    np.testing.assert_array_equal(found.astype(np.float64), wanted[wanted[:, 0].argsort(kind="stable")])
    assert spec.levels == COUNT * 4
    plain = read(tmp_path / "a.npy")
    assert (plain is not None) == (kind in ("?", "u1") or "f" in kind)  # other integers need their levels
    if kind == "?":
        assert plain[1].levels == 2


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_real_number_is_refused(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.zeros((COUNT, 4), kind), allow_pickle=True)
    assert read(tmp_path / "a.npy") is None
    assert read(tmp_path / "a.npy", levels=2) is None


BAD = {
    "nan": np.where(np.eye(COUNT, 4) > 0, np.nan, 1.0),
    "inf": np.where(np.eye(COUNT, 4) > 0, -np.inf, 1.0),
    "overflown": (np.eye(COUNT, 4) * 1e6).astype(np.float16),
    "huge": np.eye(COUNT, 4) * 1e300,
    "large": (np.eye(COUNT, 4) * 3e38).astype(np.float32),
    "tiny": np.eye(COUNT, 4) * 1e-310,
    "constant": np.full((COUNT, 4), 0.1),
    "scalar": np.array(3.0),
    "list": np.arange(5.0),
    "empty": np.zeros((0, 4)),
    "no values": np.zeros((COUNT, 0)),
    "one sample": np.random.default_rng(0).normal(size=(1, 4)),
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_cannot_be_learned_are_refused(tmp_path, name):
    np.save(tmp_path / "a.npy", BAD[name])
    with pytest.raises(DataError):
        array_file(str(tmp_path / "a.npy"), test_fraction=0.5)


@pytest.mark.parametrize("values", [[-1, 3], [0, 5], [0.5, 1], [2**40, 0], [np.nan, 0]])
def test_values_outside_the_levels_are_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", np.tile(np.array(values), (COUNT, 1)))
    assert read(tmp_path / "a.npy", levels=5) is None


CLASSES = {
    "short": np.zeros(COUNT - 1, int),
    "long": np.zeros(COUNT + 1, int),
    "floats": np.zeros(COUNT),
    "negative": -np.ones(COUNT, int),
    "one-hot": np.eye(COUNT, dtype=int),
    "names": np.array(["a"] * COUNT),
    "scalar": np.array(3),
    "overflown": np.full(COUNT, 2**63, np.uint64),
    "none": np.zeros(0, int),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_that_do_not_fit_are_refused(tmp_path, name):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(COUNT, 4)), y=CLASSES[name])
    assert read(tmp_path / "a.npz", key="x", classes="y") is None
    assert read(tmp_path / "a.npz", key="x", classes="z") is None
