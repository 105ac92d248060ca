"""Data from folders of pictures."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from score_sde.data.dataset import Dataset, split
from score_sde.data.spec import DataError, DataSpec


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
    return split(values, spec, test_fraction, seed, classes)


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
