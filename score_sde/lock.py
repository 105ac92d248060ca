"""Locks of the operating system: one writer for each run, and files that are known to be in use.

A lock belongs to an open file. The system releases it when its process ends, however that ends: a killed process leaves
no lock behind. The locks are those of ``flock``. They hold between the processes of a machine and, on most network file
systems, between machines. Windows has none of them: a warning says so there.
"""

import contextlib
import errno
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "train.lock"
"""File in a run directory that the process that trains there holds locked."""

_held: dict[Path, int] = {}  # locked folders of this process, and the thread that locked each


class LockedError(OSError):
    """Another process or thread writes this run; the message says which."""


def try_lock(handle: int) -> bool | None:
    """Lock the open file ``handle``: True when it is locked now, False when another holds it, None without locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return None  # a file system without locks
    return True


def is_named(handle: int, path: Path | str) -> bool:
    """Whether the open file ``handle`` is still the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def sole_writer(folder: Path | str) -> Iterator[None]:
    """Be the only one that trains in ``folder``, which is made if it is not there. A thread may enter it several times.

    Raises:
        LockedError: another process, or another thread, trains there.
    """
    folder = Path(folder).resolve()
    if _held.get(folder) == threading.get_ident():
        yield
        return
    if folder in _held:
        raise LockedError(f"{folder} is being trained by another thread of this process: wait until it is finished")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock_file(folder)
    _held[folder] = threading.get_ident()
    try:
        yield
    finally:
        del _held[folder]
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)  # while it is locked, so that nobody else's is removed
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # nothing was written there
                folder.rmdir()


def _lock_file(folder: Path) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        locked = try_lock(handle)
        if locked is False:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise LockedError(
                f"{folder} is being trained by {holder}: wait until it is finished, or train in another directory"
            )
        if locked is None:
            warnings.warn(f"{folder} cannot be locked on this system: see that nobody else trains there", stacklevel=3)
        if locked is None or is_named(handle, path):  # else its last holder removed it just now
            break
        os.close(handle)
    with contextlib.suppress(OSError):  # a full disk: who holds the lock is for the message alone
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle
