"""One writer for each run, whatever became of the last one."""

import subprocess
import sys
import threading

import pytest

from score_sde.lock import LOCK, LockedError, sole_writer

HOLDER = """
import sys, time
from score_sde.lock import sole_writer
with sole_writer(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_gone_even_if_it_was_killed(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(LockedError, match=f"is being trained by process {process.pid} on "), sole_writer(tmp_path):
            pytest.fail("two writers")
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / LOCK).exists()  # the file is left, the lock is not
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_thread_is_refused_and_the_same_one_is_not(tmp_path):
    errors = []

    def enter():
        try:
            with sole_writer(tmp_path):
                pass
        except LockedError as error:
            errors.append(str(error))

    with sole_writer(tmp_path):
        with sole_writer(tmp_path / "." / "x" / ".."):
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(errors) == 1
    enter()
    assert len(errors) == 1


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    with pytest.raises(ValueError), sole_writer(tmp_path / "run"):
        raise ValueError
    assert not (tmp_path / "run").exists()
    with sole_writer(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
