"""Results of different protocols have different names; the same command has the same; --output is the user's."""

import json
import shutil

import numpy as np
import pytest
import torch

from score_sde import load
from score_sde.cli import main
from score_sde.likelihood.evaluation import Estimator
from tests.cli.conftest import MOONS, refused, run, written

pytestmark = pytest.mark.usefixtures("undrawn")

SAMPLE = ("sample", "--solver=ddim", "--nfe=6", "--n=3", "--quiet")
LIKELIHOOD = ("likelihood", "--n=2", "--quiet", "--config.likelihood.solver.ode.rtol=1e-2", "--config.likelihood.audit=0")
CHANGED = {
    "sample": [
        (),
        ("--config.solver.ddim.eta=0.5",),
        ("--config.solver.ddim.grid=edm",),
        ("--seed=1",),
        ("--clip",),
        ("--denoise",),
    ],
    "likelihood": [
        (),
        ("--config.likelihood.divergence=hutchinson",),
        ("--config.likelihood.divergence=hutchinson", "--config.likelihood.probes=3"),
        ("--config.likelihood.solver.ode.atol=1e-2",),
        ("--config.data.two_moons.seed=3",),
        ("--split=train",),
        ("--seed=1",),
    ],
}


@pytest.mark.parametrize(("command", "label"), [(SAMPLE, "values"), (LIKELIHOOD, "record")])
def test_another_protocol_has_another_name(capsys, moons, command, label):
    paths = [written(run(capsys, *command, f"--workdir={moons}", *how), label) for how in CHANGED[command[0]]]
    assert len(set(paths)) == len(paths)
    assert all(path.is_file() for path in paths)
    before = paths[0].read_bytes() if label == "record" else np.load(paths[0])["samples"].tobytes()
    assert written(run(capsys, *command, f"--workdir={moons}"), label) == paths[0]  # its own, once more
    assert (paths[0].read_bytes() if label == "record" else np.load(paths[0])["samples"].tobytes()) == before


def test_another_checkpoint_has_another_name(capsys, moons):
    late = written(run(capsys, *SAMPLE, f"--workdir={moons}"), "values")
    max((moons / "checkpoints").glob("*.pt")).unlink()
    assert written(run(capsys, *SAMPLE, f"--workdir={moons}"), "values") != late


def test_a_file_of_other_data_has_another_name(capsys, moons, tmp_path):
    """The same path with other values in it, and another path with the same stem."""
    paths = set()
    for folder, value in (("a", 0.0), ("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "x.npy", np.full((2, 2), value))
        paths.add(written(run(capsys, *LIKELIHOOD, f"--workdir={moons}", f"--data={tmp_path / folder / 'x.npy'}"), "record"))
    assert len(paths) == 3


def test_a_number_of_samples_beyond_all_is_the_name_of_all(capsys, moons):
    how = ("likelihood", f"--workdir={moons}", "--quiet", *LIKELIHOOD[3:])
    assert written(run(capsys, *how, "--n=4000"), "record") == written(run(capsys, *how), "record")


def test_comparisons_do_not_overwrite_each_other(capsys, moons):
    how = ("compare", f"--workdir={moons}", "--solvers=ddim", "--nfe=4", "--n=4", "--quiet")
    plain = written(run(capsys, *how), "page")
    other = written(run(capsys, *how, "--config.solver.ddim.eta=1"), "page")
    assert plain != other
    assert plain.is_file()
    assert "eta=0.0" in plain.read_text()


def test_the_evaluations_that_were_made_are_named(capsys, moons):
    said = run(capsys, "sample", f"--workdir={moons}", "--solver=heun", "--nfe=7", "--n=2", "--quiet")
    assert "6 evaluations each (of 7 allowed)" in said
    assert written(said, "values").name.startswith("heun_nfe6_seed0_")
    said = run(capsys, "sample", f"--workdir={moons}", "--solver=adaptive_sde", "--nfe=8", "--n=2", "--quiet")
    assert "adaptive_sde cannot keep to a number of evaluations: stochastic_heun takes its place" in said
    assert written(said, "values").name.startswith("adaptive_sde_stochastic_heun_nfe8_")


@pytest.mark.parametrize(
    ("command", "label", "name", "files"),
    [
        (SAMPLE, "values", "mine.npz", ["mine.npz", "mine.png"]),
        (SAMPLE, "values", "v1.5", ["v1.5.npz", "v1.5.png"]),
        (SAMPLE, "values", "mine.png", ["mine.npz", "mine.png"]),
        (LIKELIHOOD, "record", "mine.json", ["mine.json", "mine.npz"]),
        (LIKELIHOOD, "record", "v1.5", ["v1.5.json", "v1.5.npz"]),
    ],
)
def test_output_is_taken(capsys, moons, tmp_path, command, label, name, files):
    folder = tmp_path / "new" / "deep"
    for _ in range(2):
        assert written(run(capsys, *command, f"--workdir={moons}", f"--output={folder / name}"), label) == folder / files[0]
        assert sorted(path.name for path in folder.iterdir()) == files
    message = refused(capsys, *command, f"--workdir={moons}", f"--output={folder / name}", "--seed=5")
    assert "exists, and is not what this command writes" in message


@pytest.mark.slow
def test_output_of_a_comparison_is_a_folder(capsys, moons, tmp_path):
    how = ("compare", f"--workdir={moons}", "--solvers=ddim", "--nfe=4", "--n=4", "--quiet", f"--output={tmp_path / 'c'}")
    for _ in range(2):
        assert written(run(capsys, *how), "page") == tmp_path / "c" / "compare.html"
    assert "holds other files" in refused(capsys, *how, "--seed=1")


def test_output_that_cannot_be_written(capsys, moons, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "data.npz").write_bytes(b"mine")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "folder.json").mkdir()
    for command in (SAMPLE, LIKELIHOOD):
        say = lambda name, command=command: refused(capsys, *command, f"--workdir={moons}", f"--output={tmp_path}/{name}")
        assert "is a file, and a folder is to be written there" in say("file/x")
        assert "is a folder, and a file is to be written" in say("folder")
        assert "is not the name of a file" in say("")
        assert "exists, and is not what this command writes" in say("data")  # a user's own data beside a record
    compare = ("compare", f"--workdir={moons}", "--solvers=ddim", "--nfe=4", "--n=4", "--quiet")
    assert "is a file, and a folder" in refused(capsys, *compare, f"--output={tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "data.npz").read_bytes() == b"mine"


def test_kept_batches_are_found_again_and_are_of_one_protocol(capsys, moons, monkeypatch):
    """Interrupted after a batch, the same command goes on; another one has a folder of its own."""
    how = ("likelihood", f"--workdir={moons}", "--n=4", "--quiet", *LIKELIHOOD[3:], "--config.likelihood.batch_size=2")
    whole = json.loads(written(run(capsys, *how), "record").read_text())
    shutil.rmtree(moons / "samples")
    for path in moons.glob("likelihood_*"):
        path.unlink()
    estimate, calls = Estimator.__call__, []

    def stop_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return estimate(*arguments)

    monkeypatch.setattr(Estimator, "__call__", stop_at_the_second)
    assert main(list(how)) == 130
    (kept,) = moons.glob("*.parts")
    assert len(list(kept.glob("0*.npz"))) == 1
    run(capsys, *how, "--seed=1")
    assert kept.is_dir()
    calls[:] = [()] * 2
    again = written(run(capsys, *how), "record")
    assert len(calls) == 3  # the second batch alone
    assert not kept.exists()
    assert json.loads(again.read_text())["mean"] == whole["mean"]


@pytest.mark.slow
def test_output_of_tune_is_the_folder_of_what_it_chose(capsys, moons, tmp_path):
    how = ("tune", f"--workdir={moons}", "--nfe=4", "--pilot=8", "--trials=10", "--quiet")
    assert written(run(capsys, *how, f"--output={tmp_path / 'best'}"), "saved") == tmp_path / "best" / "tuned.json"
    assert not (moons / "tuned.json").exists()
    shutil.copy(tmp_path / "best" / "tuned.json", moons)
    run(capsys, "sample", f"--workdir={moons}", "--solver=tuned", "--nfe=4", "--n=2", "--quiet")
    assert "is a file, and a folder" in refused(capsys, *how, f"--output={moons / 'config.json'}")


@pytest.mark.slow
def test_files_of_another_run_are_not_taken_for_those_of_this_one(capsys, moons, tmp_path):
    other = tmp_path / "other"
    run(capsys, "train", "--config=two_moons", f"--workdir={other}", "--quiet", *MOONS, "--config.data.two_moons.noise=0.4")
    for folder in (moons, other):
        run(capsys, "tune", f"--workdir={folder}", "--nfe=3", "--pilot=8", "--trials=10", "--quiet")
    own = load(moons).model.moments.covariance.clone()  # the file is mapped into memory, and copied over below
    shutil.copy(other / "moments.safetensors", moons)
    message = refused(capsys, "sample", f"--workdir={moons}", "--n=2", "--solver=gaussian", "--quiet")
    assert "moments.safetensors is of another run" in message
    run(capsys, "train", f"--workdir={moons}", "--quiet")  # as the message says
    torch.testing.assert_close(load(moons).model.moments.covariance, own)
    tuned = ("sample", f"--workdir={moons}", "--n=2", "--solver=tuned", "--nfe=3", "--quiet")
    assert main(list(tuned)) == 0
    assert "another run" not in capsys.readouterr().err
    shutil.copy(other / "tuned.json", moons)
    assert main(list(tuned)) == 0
    assert "tuned for another run" in capsys.readouterr().err


def test_all_of_a_model_is_in_the_name_of_what_it_made(capsys, moons):
    """The moments of its data, which a solver takes; an SDE edited by hand; the batch that shares its steps."""
    command = ("sample", f"--workdir={moons}", "--n=4", "--solver=gaussian", "--nfe=3", "--quiet", "--accept_edited_config")
    names = {written(run(capsys, *command), "values")}
    assert written(run(capsys, *command), "values") in names
    names.add(written(run(capsys, *command, "--batch_size=2"), "values"))
    (moons / "moments.safetensors").unlink()
    names.add(written(run(capsys, *command), "values"))
    config = (moons / "config.json").read_text()
    (moons / "config.json").write_text(config.replace('"beta_max": 20.0', '"beta_max": 10.0'))
    names.add(written(run(capsys, *command), "values"))
    assert len(names) == 4
