"""What is shown of long work: a bar in a terminal, plain lines elsewhere, nothing where it is not wanted."""

import io
import re
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

from score_sde import progress
from score_sde.progress import Progress, TimeProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_lines_tell_how_far_and_how_fast(clock, capsys):
    with Progress("training", 200, unit="step") as bar:
        for step in bar.over(range(200)):
            clock.seconds += 0.5
            bar.note({"loss": 1 / (1 + step), "test_loss": 0.25})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: step 20 of 200, 10% after 0:10, 1:30 to go, 2 a second, loss 0.05, test_loss 0.25"
    assert len(lines) == 10 + 1
    assert lines[-1].startswith("training: step 200 of 200, 100% after 1:40, 2 a second")


def test_lines_of_days_are_few_and_never_far_apart(clock, capsys):
    moments = []
    with Progress("training", 3 * 24 * 360, unit="step") as bar:
        for _ in bar.over(range(3 * 24 * 360)):
            clock.seconds += 10
            if capsys.readouterr().err:
                moments.append(clock.seconds)
    assert 500 < len(moments) < 1200
    assert max(after - before for before, after in pairwise(moments)) <= 310


def test_what_was_done_before_does_not_count_as_speed(clock, capsys):
    with Progress("training", 1000, unit="step", done=900) as bar:
        clock.seconds += 20
        bar.update(20)
        assert "step 920 of 1000, 92% after 0:20, 1:20 to go, 1 a second" in capsys.readouterr().err


def test_nothing_is_said_of_short_work_that_asks_for_it(clock, capsys):
    with Progress("reading", 10, unit="picture", delay=3.0) as bar:
        for _ in bar.over(range(10)):
            clock.seconds += 0.2
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_where_it_is_not_wanted(clock, capsys):
    with Progress("training", 10, unit="step", shown=False) as bar:
        for _ in bar.over(range(10)):
            clock.seconds += 100
            bar.note("loss 1")
    assert capsys.readouterr() == ("", "")


def test_parts_beyond_the_total_do_not_count(capsys):
    with Progress("reading", 10, unit="sample") as bar:
        for _ in range(4):
            bar.update(4)
    assert bar.done == 10


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 10, unit="step") as bar:
        bar.note({"loss": 0.125})
        bar.update(10)
    assert re.search(r"training: 100%\|.*\| 10/10 \[.*loss 0.125\]", terminal.getvalue())


def test_a_solver_is_followed_in_its_time(clock, capsys):
    with TimeProgress(object(), 1.0, 0.0, shown=True) as bar:
        clock.seconds += 15
        bar.reach(0.75, 12)
        clock.seconds += 15
        bar.reach(0.5, 24)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "object: 25% after 0:15, 0:45 to go, 12 evaluations"
    assert said[1] == "object: 50% after 0:30, 0:30 to go, 24 evaluations"
