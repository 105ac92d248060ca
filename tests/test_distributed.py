"""The processes of torchrun: alone without it, a group within ``joined``."""

import os
import socket

import pytest
import torch

from score_sde import SolverError, fit
from score_sde.distributed import (
    gathered,
    is_main,
    joined,
    local_rank,
    rank,
    require_one_process,
    started,
    together,
    world,
)


def test_a_process_without_torchrun_is_alone():
    with joined():
        assert (rank(), world(), started(), local_rank(), is_main()) == (0, 1, 1, 0, True)
        assert gathered("mine") == ["mine"]
        assert together(lambda: "mine") == ["mine"]
        with pytest.raises(SolverError, match="process 0 cannot"):
            together(lambda: fail(0))


def test_what_one_process_does_is_refused_to_several(monkeypatch, tmp_path):
    require_one_process("this")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="this works in one process: start it without torchrun"):
        require_one_process("this")
    with pytest.raises(ValueError, match="fit works in one process"):
        fit(torch.randn(20, 2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def fail(number):
    raise SolverError(f"process {number} cannot")


class Particular(Exception):
    """An error that no other process can make again from its message."""

    def __init__(self, what, number):
        super().__init__(f"{what} of {number}")


def fail_particularly():
    raise Particular("told", 3)


def _one_of(number, count, port, folder):
    """What torchrun sets, and what the processes then know."""
    environment = {"WORLD_SIZE": count, "RANK": number, "LOCAL_RANK": number, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}
    with joined():
        assert (rank(), world(), started(), local_rank(), is_main()) == (number, count, count, number, number == 0)
        together(lambda: (folder / "written").touch() if is_main() else None)
        assert (folder / "written").exists()
        assert gathered({number: number**2}) == [{0: 0}, {1: 1}]
        assert together(lambda: number + 1) == [1, 2]
        for failing in ([1], [0], [0, 1]):
            with pytest.raises(SolverError, match=f"process {failing[0]} cannot"):
                together(lambda failing=failing: fail(number) if number in failing else None)
        with pytest.raises((Particular, RuntimeError)[1 - number], match="told of 3"):
            together(lambda: number and fail_particularly())
    assert world() == 1


@pytest.mark.slow
def test_processes_of_a_group_know_and_wait_for_each_other(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of, args=(2, port, tmp_path), nprocs=2)
