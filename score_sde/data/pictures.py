"""Reading one picture file as 8-bit values, or refusing it by name."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from score_sde.data.spec import DataError

BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}
"""Over what transparent parts can be drawn."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read, whatever a file is called: Pillow would run another program for an EPS."""

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr")
"""Pillow's names for what can be turned into grey or colour of 8 bits without a choice."""


def read_picture(
    file: Path, *, channels: int, size: int = 0, background: str = "white", notes: Counter | None = None
) -> np.ndarray:
    """The values of a picture, uint8, ``(height, width)`` for one channel and ``(height, width, 3)`` for three.

    The picture is turned as its EXIF orientation says. Transparent parts are drawn over the background. Of several frames or
    pages the first is taken.

    Args:
        file: the picture.
        channels: 1 for grey, 3 for colour.
        size: side of the square to which the picture is cropped and resized, 0 to leave it.
        background: one of ``BACKGROUNDS``.
        notes: counts what was done that may not be expected.

    Raises:
        DataError: the file is no picture, is damaged, or has values that do not fit into 8 bits of grey or colour.
    """
    notes = Counter() if notes is None else notes
    if not file.stat().st_size:
        raise DataError(f"{file} is not a readable image: it is empty")
    try:
        # as a stream: by its name, Pillow maps an uncompressed TIFF into memory, with its sides exchanged where it is turned
        with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as opened:
            _refuse_other_modes(opened, file)
            if getattr(opened, "n_frames", 1) > 1:
                notes["hold several frames or pages, of which the first is taken"] += 1
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except DataError:
        raise
    except Exception as error:  # of Pillow and its decoders: OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(f"{file} is not a readable image: {error}") from error
    if _may_be_transparent(image):
        rgba = image.convert("RGBA")
        if np.asarray(rgba.getchannel("A")).min() < 255:
            notes[f"have transparent parts, which are drawn over {background}"] += 1
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUNDS[background]), rgba)
    image = image.convert("RGB")  # palettes too: their entries are colours
    image = image if channels == 3 else image.convert("L")
    if size:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def read_as_before(file: Path, *, channels: int, size: int = 0) -> np.ndarray:
    """A picture as version 0.1.0 read it, for its runs: not turned, and transparency left away."""
    try:
        image = Image.open(file)
        if image.mode[0] in "IF":
            raise DataError(f"{file} has more than 8 bits per pixel")
        image = image.convert("RGB" if channels == 3 else "L")
    except (Image.DecompressionBombError, OSError) as error:
        raise DataError(f"{file} is not a readable image") from error
    if size:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _refuse_other_modes(image: ImageFile.ImageFile, file: Path) -> None:
    # Pillow cuts 16-bit colour to 8, and only its names for what is stored tell; BGR;16 has 16 bits for all three
    raw = " ".join(str(tile[3]) for tile in image.tile)
    if image.mode[0] in "IF" or re.search(r"(?<!BGR);(1[0-9]|32|64)", raw):
        raise DataError(f"{file} has more than 8 bits per pixel: convert it to 8 bits, or store the values as a .npy file")
    if image.mode not in MODES:
        raise DataError(f"{file} has colours of the kind {image.mode}: convert it to RGB")


def _may_be_transparent(image: Image.Image) -> bool:
    palette = image.palette.mode if image.palette is not None else ""
    return "transparency" in image.info or palette.endswith("A") or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
