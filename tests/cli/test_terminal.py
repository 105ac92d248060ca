"""What is printed, and to what: hints that can be typed, closed pipes, terminals of few letters, full disks."""

import io
import os
import re
import shlex
import shutil
import sys

import pytest

from score_sde.cli import main
from tests.cli.conftest import MOONS, refused, run, written


def test_commands_to_type_are_quoted(capsys, moons):
    folder = moons.parent / "two words"
    shutil.move(moons, folder)
    said = run(capsys, "sample", f"--workdir={folder}", "--solver=ddim", "--nfe=2", "--n=2", "--quiet")
    assert shlex.split(written(said, "next").as_posix()) == ["score-sde", "compare", f"--workdir={folder}"]
    said = run(capsys, "train", f"--workdir={folder}", "--quiet")
    hints = re.split(r"\s+or\s+", re.search(r"^next: +(.*)$", said, flags=re.MULTILINE)[1])
    assert [shlex.split(hint)[-1] for hint in hints] == [f"--workdir={folder}"] * 2
    (folder / "config.json").unlink()
    for command in ("sample", "likelihood"):
        message = refused(capsys, command, f"--workdir={folder}")
        assert shlex.split(message)[-1] == f"--workdir={folder}"
    again = refused(capsys, "sample", f"--workdir={moons.parent / 'not one'}")
    assert shlex.split(again)[-1] == f"--workdir={moons.parent / 'not one'}"


def test_pictures_are_named_where_there_are_some(capsys, tmp_path):
    never = [option for option in MOONS if "sample_every" not in option] + ["--config.training.sample_every=0"]
    said = run(capsys, "train", "--config=two_moons", f"--workdir={tmp_path}", "--quiet", *never)
    assert "is trained for 6 steps\n" in said
    assert "its pictures" not in said
    more = ["--config.training.steps=7", "--config.training.sample_every=7"]
    said = run(capsys, "train", f"--workdir={tmp_path}", "--quiet", *more)
    assert f"its pictures are in {tmp_path / 'samples'}" in said


def test_one_sample_has_no_standard_error(capsys, moons):
    said = run(capsys, "likelihood", f"--workdir={moons}", "--n=1", "--quiet", "--config.likelihood.audit=0")
    assert "nan" not in said
    assert "nats/dim" in said
    assert "a standard error needs at least two" in said


@pytest.mark.slow
def test_no_bound_of_one_sample_is_given_an_error(capsys, digits):
    fast = ["name=ode", "ode.method=midpoint", "ode.steps=2"]
    how = [f"--config.likelihood.{option}" for option in ("audit=0", "dequantizer.steps=1", *(f"solver.{o}" for o in fast))]
    said = run(capsys, "likelihood", f"--workdir={digits}", "--bounds", "--n=1", "--quiet", *how)
    assert "nan" not in said
    assert "a standard error needs at least two" in said


def test_a_closed_pipe_is_no_error(monkeypatch, capsys):
    """As of ``score-sde list | head -1``: nothing on standard error, and the exit code of a process that a pipe ended."""
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        assert main(["list"]) == 141
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(sys, "stdout", pipe)
        assert main(["sample", "--help"]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_the_output_is_one_sentence(monkeypatch, capsys):
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        assert main(["list"]) == 2
    assert re.fullmatch(r"score-sde: .*No space left on device\n", capsys.readouterr().err)


def test_a_terminal_that_lacks_a_letter_is_shown_its_number(monkeypatch, moons):
    folder = moons.parent / "größe"
    shutil.move(moons, folder)
    screen = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
        assert main(["sample", f"--workdir={folder}", "--solver=ddim", "--nfe=2", "--n=2", "--quiet"]) == 0
        sys.stdout.flush()
        assert rb"gr\xf6\xdfe" in screen.getvalue()


@pytest.mark.parametrize("option", ["--data", "--device", "--output", "--key", "--class"])
def test_an_empty_value_is_not_taken_for_none(capsys, trained, option):
    """As ``--data=$FILE`` is where FILE is not set: the likelihood of the run's own data would be another number."""
    assert f"argument {option}: it is empty" in refused(capsys, "likelihood", f"--workdir={trained / 'moons'}", f"{option}=")


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "1e3", "", "99999999999999999999999"])
@pytest.mark.parametrize(
    ("command", "option"), [("sample", "--count"), ("sample", "--nfe"), ("compare", "--n"), ("likelihood", "--n")]
)
def test_numbers_of_things_are_positive_integers(capsys, trained, command, option, value):
    message = refused(capsys, command, f"--workdir={trained / 'moons'}", f"{option}={value}")
    assert f"a positive integer is needed, got '{value}'" in message


def test_what_is_no_number_is_no_value_of_the_config(capsys, trained):
    how = ["sample", f"--workdir={trained / 'moons'}", "--solver=edm", "--config.solver.edm.s_churn=nan"]
    assert "config.solver.edm.s_churn must be of type float, got 'nan'" in refused(capsys, *how)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_training_takes_no_infinite_steps(capsys, tmp_path, name):
    """One step would leave weights that are no numbers, and the loss before it is sound."""
    how = ["train", "--config=two_moons", f"--workdir={tmp_path / 'run'}", f"--config.training.{name}=inf"]
    assert f"training.{name} must be a finite number, got inf" in refused(capsys, *how)


@pytest.mark.parametrize("command", ["sample", "compare", "tune", "likelihood"])
def test_ctrl_c_is_one_sentence(capsys, monkeypatch, moons, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("score_sde.model.ScoreModel.forward", interrupted)
    capsys.readouterr()
    assert main([command, f"--workdir={moons}", "--quiet"]) == 130
    assert re.fullmatch(r"score-sde: stopped[^\n]*\n", capsys.readouterr().err)
