"""Data from folders of pictures."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from score_sde.data.dataset import Dataset, split
from score_sde.data.source import TensorSource
from score_sde.data.spec import DataError, DataSpec, DataWarning
from score_sde.data.tree import ENDINGS, Tree, pictures_below
from score_sde.progress import Progress

CLASSES = ("auto", "folders", "none")
"""Where the classes of pictures come from."""


def image_folder(
    path: str = "",
    size: int = 0,
    channels: int = 3,
    classes: str = "auto",
    background: str = "white",
    dequantize: bool = True,
    model_range: tuple[float, float] = (-1.0, 1.0),
    test_fraction: float = 0.1,
    seed: int = 0,
    held_out_by: str = "content",
    as_before: bool = False,
) -> Dataset:
    """All PNG, JPEG, BMP, GIF, TIFF and WebP files in a folder and the folders below it.

    Where every picture lies in one of several folders below ``path``, those folders, in natural order (2 before 10), are its
    classes. Links are followed, hidden names and what programs leave behind are not read, and each file is read once. A
    warning says what was skipped, and what was done to pictures.

    Args:
        path: the folder.
        size: side in pixels to which each image is cropped (to a centred square) and resized; 0 takes them as they are.
        channels: 3 for colour, 1 for grey.
        classes: ``auto`` as above, ``none``, or ``folders`` to leave out pictures that lie beside the class folders.
        background: ``white`` or ``black``, over which transparent parts are drawn.
        model_range: the interval onto which the values are mapped.
        test_fraction, seed, held_out_by: how much is held out, and by what, as ``score_sde.data.dataset.split`` explains.
        as_before: read as version 0.1.0 did, for its runs: hidden files too, classes in the order of their letters.

    Raises:
        DataError: a picture cannot be used; the message names it.
    """
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if size < 0:
        raise DataError(f"size must be a number of pixels, or 0 to take pictures as they are, got {size}")
    from score_sde.data.pictures import BACKGROUNDS, read_as_before, read_picture  # here: they import Pillow

    for name, given, known in (("classes", classes, CLASSES), ("background", background, BACKGROUNDS)):
        if given not in known:
            raise DataError(f"unknown {name} {given!r}; choose one of {', '.join(known)}")
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        message = f"{root.absolute()} is not a folder" if path else "no folder given: path is empty"
        raise DataError(message, remedy=("folder.path", "my_images"))
    if as_before:
        found = sorted(file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        tree = Tree(found, [], {}, [])
        names = sorted({file.parts[0] for file in found}) if found and min(len(file.parts) for file in found) > 1 else []
    else:
        tree = pictures_below(root)
        names = _class_names(root, tree, classes)
    files = [file for file in tree.files if not names or len(file.parts) > 1]
    if not files:
        raise DataError(f"{path} holds no image ({', '.join(ENDINGS)}){_skipped(tree.skipped)}")
    notes: Counter = Counter()
    values, first = torch.empty(0), np.empty(0)
    with Progress("reading pictures", len(files), unit="picture", stays=False, delay=3.0) as bar:
        for place, file in enumerate(bar.over(files)):
            if as_before:
                picture = read_as_before(root / file, channels=channels, size=size)
            else:
                picture = read_picture(root / file, channels=channels, size=size, background=background, notes=notes)
            if not place:
                first = picture
                values = torch.empty(len(files), channels, *picture.shape[:2], dtype=torch.uint8)
            _refuse_other_size(first, picture, root / files[0], root / file)
            values[place] = torch.tensor(picture).reshape(*picture.shape[:2], channels).permute(2, 0, 1)
    if not as_before:
        _tell(root, tree.skipped, notes, grey=channels == 3 and bool((values == values[:, :1]).all()))
    spec = DataSpec(tuple(values.shape[1:]), levels=256, dequantize=dequantize, model_range=model_range)
    number = {name: index for index, name in enumerate(names)}
    indices = torch.tensor([number[file.parts[0]] for file in files]) if names else None
    data = split(TensorSource(values, spec, indices), test_fraction, seed, by=held_out_by)
    return data._replace(class_names=tuple(names))


def _class_names(root: Path, tree: Tree, classes: str) -> list[str]:
    """The names of the classes in their order, none where there are no classes; pictures beside them count as skipped."""
    names = list(dict.fromkeys(file.parts[0] for file in tree.files if len(file.parts) > 1))
    beside = [file for file in tree.files if len(file.parts) == 1]
    if classes == "none" or (classes == "auto" and len(names) < 2):
        return []
    if not names:
        message = f"{root} has no folders with pictures, so there are no classes: give classes='none'"
        raise DataError(message, remedy=("folder.classes", "none"))
    if classes == "auto" and beside:
        raise DataError(
            f"{len(beside)} pictures ({_some(beside)}) lie beside the folders {_some(names)} in {root}: give classes='folders' "
            "to take the folders for classes without those pictures, or classes='none' to take all pictures without classes",
            remedy=("folder.classes", "folders"),
        )
    for first, second in tree.doubles:
        if first.parts[0] != second.parts[0]:
            raise DataError(
                f"{root / second} leads to the same as {root / first}, in another class: remove one of them, or give "
                "classes='none'",
                remedy=("folder.classes", "none"),
            )
    if beside:
        tree.skipped["beside the class folders"] = beside
    empty = [folder for folder in tree.folders if len(folder.parts) == 1 and folder.name not in names]
    if empty:
        tree.skipped["folders without pictures"] = empty
    return names


def _refuse_other_size(first: np.ndarray, other: np.ndarray, first_file: Path, file: Path) -> None:
    if other.shape != first.shape:
        raise DataError(
            f"{file} has {other.shape[1]} x {other.shape[0]} pixels, {first_file} has {first.shape[1]} x {first.shape[0]}: "
            "give a size, to which all are cropped and resized",
            remedy=("folder.size", str(min(first.shape[:2] + other.shape[:2]))),
        )


def _tell(root: Path, skipped: Mapping[str, list[Path]], notes: Counter, *, grey: bool) -> None:
    """Warn once of all that was skipped, and of what was done to pictures."""
    done = [f"{count} {what}" for what, count in notes.items()]
    if grey:
        done.append("all pictures are grey, and channels=1 makes one channel of them")
    said = "; ".join(filter(None, [_skipped(skipped).removeprefix("; "), *done]))
    if said:
        remedy = ("folder.channels", "1") if grey else None
        warnings.warn(DataWarning(f"pictures of {root}: {said}", remedy=remedy), stacklevel=3)


def _skipped(skipped: Mapping[str, list[Path]]) -> str:
    parts = [f"{len(paths)} {reason} ({_some(paths)})" for reason, paths in skipped.items()]
    return f"; skipped {', '.join(parts)}" if parts else ""


def _some(names: Sequence[Path | str]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
