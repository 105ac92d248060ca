"""Files that are whole or not there, and that show when they were damaged.

*Writing.* Content goes to a temporary file beside the real one, then to the disk, and then takes its place: a crash at any
moment leaves either the old file or the new one, never a part. Whatever goes wrong is a ``WriteError`` that names the file.

*Digests.* A file that is read again carries the SHA-256 of its content inside itself, so that both are replaced together:

    write_json, read_json                  a key "sha256", over everything else in canonical form
    write_safetensors, read_safetensors    an entry "sha256" of the metadata, over the file with zeros in its place
    write_npz, read_npz                    a line after the end of the zip archive, over everything before it
    write_sealed, check_sealed             the same, for any zip archive, as ``torch.save`` writes it
    append_metrics, read_metrics           a number "check" in every line, over everything else in it but the seconds

Readers raise ``DamagedError`` where the two disagree. A file without a digest, of an earlier version, is checked by the CRCs
that its archive has, if it is one. Whatever is written into a run and read again should use one of these pairs.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from score_sde.lock import is_named, try_lock


class WriteError(OSError):
    """A file cannot be written; the message names it and the reason."""


class ReadError(OSError):
    """A file cannot be read; the message names it and the reason. That does not say that it is damaged."""


class DamagedError(ValueError):
    """A file is not as it was written; the message names it."""


# whole or not there


def write_atomically(
    path: Path | str, write: Callable[[BinaryIO], Any], *, check: Callable[[Path], None] | None = None
) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to disk, and put it in place of ``path``.

    Args:
        path: the file; folders above it are made.
        write: writes the content.
        check: reads the temporary file before it takes its place, and raises an error if it is not sound.

    Raises:
        WriteError: the file cannot be written; what was there before is as it was, and nothing is left beside it.
    """
    path = Path(path)
    with _naming(path):
        _make_folder(path.parent)
        handle, temporary = _temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:  # open, and so locked, until it is in its place
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if check is not None:
                    check(Path(temporary))
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content``, atomically."""
    write_atomically(path, lambda file: file.write(content))


def sync_file(path: Path | str) -> None:
    """Flush to disk what was appended to ``path``, if it is there."""
    path = Path(path)
    if path.exists():
        with _naming(path), path.open("ab") as file:
            os.fsync(file.fileno())


def remove_leftovers(folder: Path | str) -> None:
    """Remove the temporary files that killed processes left in ``folder`` and the folders in it, none that is being written."""
    folder = Path(folder)
    with contextlib.suppress(OSError):  # what cannot be read or removed stays
        inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        for path in [path for place in (folder, *inside) for path in place.iterdir()]:
            if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                handle = os.open(path, os.O_RDWR)
                try:
                    if try_lock(handle):
                        path.unlink()
                finally:
                    os.close(handle)


_LEFTOVER = re.compile(r"\..+\.(pt|json|jsonl|npz|png|safetensors|csv|html)\.[A-Za-z0-9_]+")


@contextlib.contextmanager
def _naming(path: Path | str, *, reading: bool = False) -> Iterator[None]:
    """Turn the errors of the system into one that names ``path``."""
    try:
        yield
    except (WriteError, ReadError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if reading:
            raise ReadError(f"{path} cannot be read: {reason}") from error
        raise WriteError(f"{path} cannot be written: {reason}; nothing that was saved before is lost") from error


def _read(path: Path | str) -> bytes:
    with _naming(path, reading=True):
        return Path(path).read_bytes()


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside ``path``, locked as long as it is open: what is not locked was left by a killed process."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        if try_lock(handle) is None or is_named(handle, name):
            return handle, name
        os.close(handle)  # it was taken for a leftover before it was locked


def _make_folder(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync(made.parent)


def _sync(folder: Path) -> None:
    """Flush the names in ``folder`` to disk, so that a rename outlives a power failure."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# JSON


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON with its digest, atomically."""
    plain = json.loads(json.dumps(value))
    write_text(path, json.dumps({**plain, "sha256": _digest_of_json(plain)}, indent=2) + "\n")


def read_json(path: Path | str, *, accept_edited: bool = False) -> dict[str, Any]:
    """Read an object of JSON, without its digest.

    Args:
        path: the file.
        accept_edited: whether it may have been edited by hand, so that its digest is another's.

    Raises:
        DamagedError: it is not an object of JSON, or not that which was written.
    """
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged: it holds {str(value)[:40]} in place of an object")
    digest = _take_digest(path, value)
    if digest is not None and not accept_edited and digest != _digest_of_json(value):
        raise DamagedError(f"{path} is not as it was written: it is damaged, or was edited by hand")
    return value


def _take_digest(path: Path | str, value: dict[str, Any]) -> Any:
    """Remove the digest from what was read; None where there is none."""
    if "sha256" not in value and any(isinstance(part, str) and _DIGEST.fullmatch(part) for part in value.values()):
        raise DamagedError(f"{path} is damaged: its digest has lost its name")
    return value.pop("sha256", None)


_DIGEST = re.compile("[0-9a-f]{64}")


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def append_metrics(path: Path | str, value: Mapping[str, float]) -> None:
    """Append what was measured at a ``step``, with its digest, as a line of JSON.

    Raises:
        WriteError: it cannot be written.
    """
    path, line = Path(path), json.dumps({**value, "check": _digest_of_line(value)}) + "\n"
    with _naming(path), path.open("ab") as file:
        file.write(line.encode())


def read_metrics(path: Path | str) -> tuple[list[dict[str, Any]], list[int]]:
    """The sound lines of ``append_metrics``, each with its digest, and the numbers from 1 of the lines that are not."""
    values: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line:
            continue
        try:
            value = json.loads(line)
            digest = value.get("check", _digest_of_line(value))
            sound = digest == _digest_of_line(value) and type(value["step"]) is int
            sound = sound and all(type(part) in (int, float) for part in value.values())
        except (ValueError, AttributeError, KeyError, RecursionError):
            sound = False
        if sound:
            values.append(value)
        else:
            damaged.append(number)
    return values, damaged


def _digest_of_line(value: Mapping[str, Any]) -> int:
    """48 bits of a digest, so that all of a line are numbers; how long something took is not of what was computed."""
    digest = _digest_of_json({key: part for key, part in value.items() if key not in ("check", "seconds")})
    return int(digest[:12], 16)


# zip archives: .npz and checkpoints

_SEAL = re.compile(rb"\nscore_sde sha256 ([0-9a-f]{64})\n")
_SEAL_LENGTH = len("\nscore_sde sha256 \n") + 64
_BLOCK = 1 << 20


def write_sealed(path: Path | str, write: Callable[[BinaryIO], Any]) -> None:
    """Write what ``write`` writes from beginning to end, and its digest; read it again before it takes the place of ``path``.

    Readers of zip archives overlook what follows their end. So this is for zip archives.
    """

    def sealed(file: BinaryIO) -> None:
        output: Any = _Digesting(file)  # to write an archive no more than this is asked of a file
        write(output)
        if output.error is not None:
            raise output.error
        file.write(_seal(output.digest))

    write_atomically(path, sealed, check=_check_written)


def check_sealed(path: Path | str) -> bool:
    """Check a zip archive by its digest or, where it has none, by the CRC of each of its entries.

    Returns:
        whether it has a digest.

    Raises:
        DamagedError: it is not as it was written, or no zip archive.
    """
    with _naming(path, reading=True), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = max(0, size - _SEAL_LENGTH)
        file.seek(length)
        found = _SEAL.fullmatch(file.read())
        if found:
            file.seek(0)
            if _digest_of_file(file, length) != found[1].decode():
                raise DamagedError(f"{path} is damaged: its content is not that which was written")
            return True
        file.seek(max(0, size - 22 - 2**16))
        _, record, end = file.read().rpartition(b"PK\5\6")  # an archive without a digest ends with this record
        if not record or len(end) != 18 + int.from_bytes(end[16:18], "little"):
            raise DamagedError(f"{path} is damaged: it does not end as it was written")
        try:
            broken = zipfile.ZipFile(file).testzip()
        except (*_BROKEN_ZIP, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DamagedError(f"{path} is damaged: it is not a whole zip archive ({error})") from error
        if broken:
            raise DamagedError(f"{path} is damaged: the CRC of its entry {broken} is wrong")
    return False


def is_pickle(path: Path | str) -> bool:
    """Whether it is a bare pickle, as old versions of torch wrote it, and no zip archive."""
    with _naming(path, reading=True), open(path, "rb") as file:
        return file.read(1) == b"\x80"


_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, IndexError, RuntimeError)


def write_npz(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as ``.npz`` with a digest, atomically."""
    archive = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(archive, **named)
    write_sealed(path, lambda file: file.write(archive.getbuffer()))


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``.

    Raises:
        DamagedError: it is not as it was written, or not an archive of plain arrays.
    """
    check_sealed(path)
    try:
        with np.load(path, allow_pickle=False) as saved:
            return dict(saved)
    except (*_BROKEN_ZIP, TypeError, SyntaxError) as error:
        raise DamagedError(f"{path} is damaged: it is not an archive of plain arrays ({error})") from error


class _Digesting:
    """A file that is written from beginning to end, and the digest of what was written.

    An error of the system is kept in ``error`` rather than raised: ``torch.save`` would hide it behind one of its own.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                self.file.write(content)
                self.digest.update(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes

    def flush(self) -> None:
        """Nothing: it is flushed as a whole."""


def _seal(digest: Any) -> bytes:
    return f"\nscore_sde sha256 {digest.hexdigest()}\n".encode()


def _check_written(path: Path) -> None:
    try:
        sound = check_sealed(path)
    except DamagedError:
        sound = False
    if not sound:
        raise OSError("what was written cannot be read again")


def _digest_of_file(file: BinaryIO, length: int | None = None, begin: bytes = b"") -> str:
    digest = hashlib.sha256(begin)
    while block := file.read(_BLOCK if length is None else min(_BLOCK, length)):
        digest.update(block)
        length = None if length is None else length - len(block)
    return digest.hexdigest()


# safetensors


def write_safetensors(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors and words about them as ``.safetensors`` with a digest, atomically."""
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    content = save(plain, metadata={**(metadata or {}), "sha256": "0" * 64})
    digest = hashlib.sha256(content).hexdigest().encode()
    place = content.index(b'"sha256":"') + len(b'"sha256":"')

    def write(file: BinaryIO) -> None:
        for part in (content[:place], digest, memoryview(content)[place + 64 :]):
            file.write(part)

    write_atomically(path, write)


def read_safetensors(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file, and the words about them.

    Raises:
        DamagedError: it is not as it was written, or no such file.
    """
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  (it is not a dict)
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: it is not a safetensors file ({error})") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The words about the tensors of a ``.safetensors`` file, after a check of the whole file.

    Raises:
        DamagedError: it is not as it was written, or no such file.
    """
    with _naming(path, reading=True), open(path, "rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), 100_000_000))
        try:
            metadata = json.loads(header).get("__metadata__", {})
            found = _take_digest(path, metadata)
            if not all(isinstance(word, str) for word in metadata.values()):
                raise TypeError("its metadata are not words")
        except DamagedError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: it is not a safetensors file ({error})") from error
        if found is not None:
            blank = header.replace(str(found).encode(), b"0" * 64, 1)
            if found != _digest_of_file(file, begin=start + blank):
                raise DamagedError(f"{path} is damaged: its content is not that which was written")
    return metadata
