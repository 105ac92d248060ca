"""The pictures in a folder and in those below it: what is one, what is left over, each file once."""

import os
import re
import stat
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from score_sde.data.spec import DataError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""How the names of pictures end, in small letters."""

LEFTOVERS = (
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
"""Names, in small letters, of what systems put beside pictures; hidden names and backups (``name~``) join them."""


class Tree(NamedTuple):
    """What was found below a folder; all paths are relative to it, in natural order.

    ``skipped`` maps a reason to the paths it holds for. ``doubles`` has pairs of paths that lead to the same file or folder,
    the one by which it was taken first.
    """

    files: list[Path]
    folders: list[Path]
    skipped: dict[str, list[Path]]
    doubles: list[tuple[Path, Path]]


def natural(path: Path | str) -> tuple:
    """A key that sorts numbers by value and letters without regard to case: ``2`` before ``10``, ``a`` before ``B``."""
    pieces = re.split(r"(\d+)", str(path).casefold())
    return *(int(piece) if place % 2 else piece for place, piece in enumerate(pieces)), str(path)


def pictures_below(root: Path) -> Tree:
    """All pictures below ``root``. Links are followed; what several names lead to is taken once, by a name that is no link.

    Raises:
        DataError: a folder cannot be read.
    """
    files: list[Path] = []
    folders: list[Path] = []
    skipped: dict[str, list[Path]] = defaultdict(list)
    doubles: list[tuple[Path, Path]] = []
    top = os.path.realpath(root)
    seen = {top: Path()}
    to_read, links = [(root, top)], []

    def take(path: Path, real: str) -> None:
        relative = path.relative_to(root)
        mode = os.stat(path).st_mode  # before anything is opened: a named pipe would never answer
        if real in seen:
            doubles.append((seen[real], relative))
            skipped["links to what was read already"].append(relative)
        elif stat.S_ISDIR(mode):
            seen[real] = relative
            folders.append(relative)
            to_read.append((path, real))
        elif not stat.S_ISREG(mode):
            skipped["pipes, sockets or devices"].append(relative)
        elif path.suffix.lower() not in ENDINGS:
            skipped["files of other types"].append(relative)
        else:
            seen[real] = relative
            files.append(relative)

    while to_read or links:
        if not to_read:  # links come last, so that a file is taken by its own name
            link = links.pop(0)
            real = os.path.realpath(link)
            if not os.path.exists(link):
                skipped["broken links"].append(link.relative_to(root))
            elif top == real or top.startswith(real.rstrip(os.sep) + os.sep):
                skipped["links to a folder above"].append(link.relative_to(root))
            else:
                take(link, real)
            continue
        folder, real = to_read.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name))
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name.endswith("~") or entry.name.casefold() in LEFTOVERS:
                skipped["hidden, or left over by a program"].append(path.relative_to(root))
            elif entry.is_symlink():
                links.append(path)
            else:
                take(path, os.path.join(real, entry.name))
    return Tree(sorted(files, key=_by_parts), sorted(folders, key=_by_parts), dict(skipped), doubles)


def _by_parts(path: Path) -> tuple:
    return tuple(natural(part) for part in path.parts)
