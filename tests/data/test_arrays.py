"""Arrays from files: what they are taken for, and what is refused."""

import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from score_sde.data import (
    DataError,
    DataSpec,
    array_file,
    load_array,
)
from tests.data.reading import every, sorted_rows


def save(path, array, **more) -> str:
    np.savez(path, array, **more) if path.suffix == ".npz" else np.save(path, array)
    return str(path)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_floats_are_continuous_and_standardized(tmp_path, ending):
    array = (np.random.default_rng(0).normal(40, 7, (200, 2, 6)) * [[1], [1e-3]]).astype(np.float32)
    data = array_file(save(tmp_path / f"a{ending}", array), held_out_by="position")
    assert (len(data.train), len(data.test), data.spec.shape, data.spec.levels) == (180, 20, (2, 6), None)
    assert sorted_rows(torch.cat([every(data.train), every(data.test)])) == sorted_rows(torch.from_numpy(array))
    x = data.spec.scale(every(data.train).double())
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.std((0, 2), correction=0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_8_bit_data_has_256_levels_unless_told_otherwise(tmp_path):
    path = save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 10, (30, 4)).astype(np.uint8))
    assert array_file(path).spec.levels == 256
    assert array_file(path, levels=10).spec == DataSpec((4,), levels=10)
    assert array_file(path, dequantize=False).spec == DataSpec((4,), levels=256, dequantize=False)
    with pytest.raises(DataError, match="values from 0 to 9, the model expects 0 to 8"):
        array_file(path, levels=9)


def test_wider_integers_need_their_levels(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(40, dtype=np.int64).reshape(20, 2))
    with pytest.raises(DataError, match=r"type int64: say how many levels"):
        array_file(path)
    assert array_file(path, levels=40).spec.levels == 40
    with pytest.raises(DataError, match="0 to 39, the model expects 0 to 16"):
        array_file(path, levels=17)


def test_floats_that_hold_integers_may_have_levels(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(40.0).reshape(20, 2))
    assert array_file(path, levels=40).spec.levels == 40
    with pytest.raises(DataError, match="holds fractions"):
        array_file(save(tmp_path / "b.npy", np.arange(40.0).reshape(20, 2) / 4), levels=40)


def test_shape_is_given_to_each_sample(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(20 * 12, dtype=np.uint8).reshape(20, 3, 4))
    data = array_file(path, shape=(1, 3, 4))
    assert every(data.train).shape[1:] == (1, 3, 4)
    plain = array_file(path, layout="channels_first")
    assert torch.equal(every(data.train)[:, 0], every(plain.train))
    with pytest.raises(DataError, match=r"shape \(3, 4\), which does not fill \(5,\)"):
        array_file(path, shape=(5,))


def test_key_chooses_from_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((4, 2), np.uint8), labels=np.ones((4, 1), np.uint8))
    assert load_array(str(path), "images").shape == (4, 2)
    assert load_array(str(path), "labels").shape == (4, 1)
    for key in ("", "image"):
        with pytest.raises(DataError, match=r"holds images, labels: choose one by its key"):
            load_array(str(path), key)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[1, 258]], dtype=">i4"), torch.int32),
        (np.array([[1.5, -2]], dtype=">f8"), torch.float64),
        (np.array([[1.5, -2]], dtype=np.float16), torch.float32),
        (np.array([[1, 65535]], dtype=np.uint16), torch.int64),
        (np.array([[True, False]]), torch.uint8),
        (np.asfortranarray(np.arange(6.0).reshape(2, 3)), torch.float64),
    ],
)
def test_number_types_keep_their_values(tmp_path, array, dtype):
    loaded = load_array(save(tmp_path / "a.npy", array))
    assert loaded.dtype == dtype
    assert loaded.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1.0], [math.nan], [2.0]]), "NaN or infinite"),
        (np.array([[1.0], [math.inf], [2.0]]), "NaN or infinite"),
        (np.zeros((0, 3)), r"is empty: its shape is \(0, 3\)"),
        (np.zeros((3, 0)), "is empty"),
        (np.arange(5.0), r"has shape \(5,\); the first dimension counts samples"),
        (np.array(3.0), r"has shape \(\)"),
        (np.ones((9, 2)), "constant"),
        (np.ones((9, 2), complex), "values of type complex128"),
        (np.array([["a", "b"]]), "values of type <U1"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "values of type datetime64"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, array, message):
    for ending in (".npy", ".npz"):
        with pytest.raises(DataError, match=message):
            array_file(save(tmp_path / f"a{ending}", array))


class Payload:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_not_executed(tmp_path):
    made = tmp_path / "made"
    objects = np.empty((2, 1), dtype=object)
    objects[:] = Payload(made)
    paths = [save(tmp_path / "a.npy", objects), save(tmp_path / "a.npz", objects), str(tmp_path / "plain.npy")]
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Payload(made)))
    for path in paths:
        with pytest.raises(DataError, match=r"not a .npy or .npz file of numbers"):
            load_array(path)
    assert not made.exists()
    np.load(paths[0], allow_pickle=True)  # the payload would have worked
    assert made.exists()


def test_files_that_are_no_arrays_are_refused(tmp_path):
    whole = save(tmp_path / "whole.npz", np.random.default_rng(0).random((50, 3)))
    raw = (tmp_path / "whole.npz").read_bytes()
    contents = {
        "text.npy": b"1,2\n3,4\n",
        "nothing.npy": b"",
        "cut.npz": raw[: len(raw) // 2],
        "changed.npz": raw[:300] + b"?" * 20 + raw[320:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    save(tmp_path / "full.npy", np.arange(300.0).reshape(100, 3))
    raw = (tmp_path / "full.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(raw[:500])
    (tmp_path / "header.npy").write_bytes(raw[:40].replace(b"'", b"(") + raw[40:])
    with zipfile.ZipFile(tmp_path / "archive.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    assert load_array(whole).shape == (50, 3)
    for name in [*contents, "cut.npy", "header.npy", "archive.npz"]:
        with pytest.raises(DataError, match=rf"{name} is (not a .npy or .npz file of numbers|damaged)"):
            load_array(str(tmp_path / name))
    with pytest.raises(DataError, match=r"nowhere.npy not found"):
        load_array(str(tmp_path / "nowhere.npy"))
    with pytest.raises(DataError, match="no file given"):
        array_file()
