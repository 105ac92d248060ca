"""A folder of finished batches, from which an interrupted likelihood goes on.

The file of a batch is an ``.npz``, followed by a SHA-256 of its content, its place and its protocol. A batch is trusted where
that agrees.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.files import write_atomically, write_text


@dataclass(frozen=True)
class Kept:
    """The batches of one protocol in ``folder``, by the places of their first samples.

    Args:
        folder: a folder of such batches, or one that is empty or not there.
        protocol: what a batch must agree with: the model, the data and all settings.
    """

    folder: Path
    protocol: Mapping[str, str]

    def prepare(self) -> None:
        """Make the folder, and remove batches of another protocol.

        Raises:
            ValueError: the folder holds other files.
        """
        file = self.folder / "protocol.json"
        foreign = [path for path in self.folder.glob("*") if not path.name.startswith(".")]  # as of an interrupted write
        if foreign and not file.is_file():
            raise ValueError(f"{self.folder} holds other files, and is not a folder of finished batches: keep takes a new one")
        try:
            same = json.loads(file.read_text()) == self.protocol
        except (OSError, ValueError):
            same = False
        if not same:
            forget(self.folder)
            write_text(file, json.dumps(self.protocol, indent=2) + "\n")

    def write(self, first: int, arrays: Mapping[str, Any]) -> None:
        """Keep a batch."""
        content = io.BytesIO()
        np.savez(content, **arrays)
        whole = content.getvalue()
        write_atomically(self._file(first), lambda target: target.write(whole + self._seal(first, whole)))

    def read(self, first: int, count: int) -> dict[str, np.ndarray] | None:
        """A batch of ``count`` samples; None where it is missing, damaged, of another place, or holds NaN."""
        try:
            content = self._file(first).read_bytes()
        except OSError:
            return None
        content, seal = content[:-32], content[-32:]
        if seal != self._seal(first, content):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            arrays = dict(saved)
        sound = all(len(array) == count and not np.isnan(array).any() for array in arrays.values())
        return arrays if sound else None

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:09d}.npz"

    def _seal(self, first: int, content: bytes) -> bytes:
        return hashlib.sha256(json.dumps([self._file(first).name, self.protocol]).encode() + content).digest()


def forget(folder: Path) -> None:
    """Remove the batches that were kept in a folder and in those within it, and nothing else."""
    for inner in (*(path for path in folder.glob("*") if path.is_dir()), folder):
        for pattern in ("[0-9]*.npz", ".[0-9]*.npz.*", ".protocol.json.*", "protocol.json"):  # with those half written
            for file in inner.glob(pattern):
                file.unlink()
        with contextlib.suppress(OSError):  # it is not there, or holds other files
            inner.rmdir()
