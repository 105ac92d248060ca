"""The processes among which ``torchrun`` shares work: how many there are, which of them this is, what they exchange.

``torchrun`` starts processes that know of each other by environment variables. Within ``joined`` they form a group. Outside
of it, and without ``torchrun``, a process is alone: its rank is 0, of a world of 1.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

Answer = TypeVar("Answer")


def started() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def require_one_process(doing: str) -> None:
    """Raise a ``ValueError`` where ``torchrun`` started several processes: each would do the same, and write the same files."""
    if started() > 1:
        raise ValueError(f"{doing} works in one process: start it without torchrun")


@contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that ``torchrun`` started are a group. They exchange results, on the CPU."""
    if started() == 1:
        yield
        return
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def rank() -> int:
    """The number of this process in the group."""
    return torch.distributed.get_rank() if _in_a_group() else 0


def world() -> int:
    """The number of processes in the group."""
    return torch.distributed.get_world_size() if _in_a_group() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def gathered(part: Any) -> list[Any]:
    """What each process of the group gives, in the order of their ranks; it must be what ``pickle`` can write."""
    parts: list[Any] = [part] * world()
    if len(parts) > 1:
        torch.distributed.all_gather_object(parts, part)
    return parts


def together(work: Callable[[], Answer]) -> list[Answer]:
    """What ``work`` gives in each process of the group, in the order of their ranks.

    If it fails in one process, all of them raise that error: none waits for an answer that never comes. If it fails in
    several, all raise the error of the lowest rank.
    """
    answer, failed = None, None
    try:
        answer = work()
    except Exception as error:
        failed = error
    everybody = gathered((answer, None if failed is None else _portable(failed)))
    first = next((rank for rank, (_, error) in enumerate(everybody) if error is not None), None)
    if first is not None:
        raise failed if failed is not None and first == rank() else everybody[first][1]
    return [answer for answer, _ in everybody]


def _portable(error: Exception) -> Exception:
    """An error in a form that other processes can read: its type and its message, or a ``RuntimeError`` that tells both."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the constructor of its type wants
        return RuntimeError(f"{type(error).__name__}: {error}")


def _in_a_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
