"""Where a command writes: names that say what was done, with a digest that tells one protocol from every other.

A name has the few words by which a reader finds a file, and the first digits of a SHA-256 of all that the result depends on.
The same command overwrites its own result, and goes on from its own kept batches; any other command has another name. With
``--output`` the name is the user's, and a file of another protocol that has it already is left alone.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from score_sde.config import ConfigError, chosen_only
from score_sde.data import DataSource, blocks
from score_sde.likelihood.evaluation import weights_digest
from score_sde.run import Run


def protocol_digest(run: Run, protocol: Mapping[str, Any]) -> str:
    """Eight digits that stand for the model in use, the moments of its data included, and for everything in ``protocol``."""
    sections = chosen_only({name: run.config[name] for name in ("sde", "network", "model")})
    model = {"config": sections, "data_spec": asdict(run.model.data), "moments": [*map(data_digest, run.model.moments or ())]}
    whole = {"weights": weights_digest(run.model), "model": model, "step": run.step, **protocol}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:8]


def data_digest(values: Tensor | None) -> str:
    """A digest of data in memory."""
    return "" if values is None else _digest([values.detach().cpu()], len(values))


def source_digest(source: DataSource) -> str:
    """A digest of all the data of a source."""
    return _digest((block.values for block in blocks(source, "protocol")), len(source))


def _digest(parts: Iterable[Tensor], count: int) -> str:
    digest = hashlib.sha256()
    for place, part in enumerate(parts):
        array = np.ascontiguousarray(part.numpy())
        if not place:
            digest.update(f"{array.dtype} {(count, *array.shape[1:])}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def output_files(given: str | None, default: Path, digest: str, *, endings: tuple[str, ...]) -> list[Path]:
    """The files to be written, one for each of ``endings``. Their name is ``given`` or, where that is None, ``default``.

    The first file says by what protocol it was made.

    Raises:
        ConfigError: a file cannot be written there, or there is one of another protocol.
    """
    stem = str(default) if given is None else given
    for ending in endings:
        if given is not None and given.endswith(ending):
            stem = given.removesuffix(ending)
    if not Path(stem).name or stem.endswith(("/", os.sep)):
        raise ConfigError(f"--output={given} is not the name of a file: {endings[0]} is added to the name that is given")
    files = [Path(stem + ending) for ending in endings]
    for file in files:
        if file.is_dir():
            raise ConfigError(f"{file} is a folder, and a file is to be written: give another name, --output=NAME{endings[0]}")
    require_writable(files[0].parent)
    there = [file for file in files if file.exists()]
    if given is not None and there and _made_by(files[0]) != digest:
        raise ConfigError(f"{there[0]} exists, and is not what this command writes: remove it, or give another --output")
    return files


def output_folder(given: str | None, default: Path, digest: str, *, marked: str) -> Path:
    """The folder to be written to; ``marked`` is the file in it that holds the digest.

    Raises:
        ConfigError: it cannot be made, or holds other things.
    """
    folder = default if given is None else Path(given)
    require_writable(folder)
    if given is not None and folder.is_dir() and any(folder.iterdir()):
        try:
            known = digest in (folder / marked).read_text(errors="replace")
        except OSError:
            known = False
        if not known:
            raise ConfigError(f"{folder} holds other files: remove them, or give another --output")
    return folder


def require_writable(folder: Path) -> None:
    """Raise a ``ConfigError`` unless files can be written in ``folder``, which need not be there yet."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not above.is_dir():
        raise ConfigError(f"{above} is a file, and a folder is to be written there: give another --output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{above} cannot be written to: give another --output")


def _made_by(file: Path) -> str | None:
    """The digest in a file of samples or of a record; None where it is of another program."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as saved:
                return json.loads(str(saved["about"]))["protocol"]
        return json.loads(file.read_text())["protocol"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
