"""A run knows its data: continued on no other, found from anywhere, its classes called by their names."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import score_sde
from score_sde.cli import main
from score_sde.cli.data import run_data
from score_sde.config import from_saved
from score_sde.run import load_known_data
from tests.data.reading import every

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = ("--config.network.name=mlp", "--config.network.mlp.width=8", "--config.network.mlp.depth=1", "--quiet")
SHORT = ("--config.training.steps=2", "--config.training.batch_size=8", "--config.training.sample_every=0")
FAST = ("--config.likelihood.solver.name=ode", "--config.likelihood.solver.ode.method=midpoint", "--config.likelihood.audit=0")
NAMES = ("cat", "Dog", "bird 2", "bird 10")


def run(capsys, *arguments: str) -> tuple[str, str]:
    """What a command says on standard output and on standard error."""
    capsys.readouterr()
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr()


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a file, ``points``, and one on a folder with classes, ``zoo``; beside them what they were trained on."""
    root = tmp_path_factory.mktemp("known")
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(60, 2)))
    shutil.copy(root / "points.npy", root / "as_it_was.npy")
    for i, name in enumerate(NAMES):
        (root / "pictures" / name).mkdir(parents=True)
        for j in range(6):
            Image.new("L", (3, 3), 60 * i + 2 * j).save(root / "pictures" / name / f"{j}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        file = ("--config.data.name=file", "--config.data.file.path=points.npy", *TINY, *SHORT)
        assert main(["train", "--config=two_moons", "--workdir=points", *file]) == 0
        folder = ("--config.data.name=folder", "--config.data.folder.path=pictures", "--config.data.folder.channels=1")
        classes = "--config.network.mlp.classes=4"
        assert main(["train", "--config=two_moons", "--workdir=zoo", *folder, classes, *TINY, *SHORT]) == 0
    return root


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of all of it, whose runs say that their data lies in the copy."""
    shutil.copytree(trained, tmp_path / "here")
    for name in ("points", "zoo"):
        path = tmp_path / "here" / name / "config.json"
        change(path, lambda saved: point_to(saved, tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def point_to(saved, root):
    section = saved["config"]["data"]
    section[section["name"]]["path"] = str(root / ("points.npy" if section["name"] == "file" else "pictures"))


def change(path, how) -> None:
    """Change a config as an older version would have written it: without a digest."""
    saved = json.loads(path.read_text())
    saved.pop("sha256", None)
    how(saved)
    path.write_text(json.dumps(saved))


def old(path, data_path) -> None:
    """Make a config what the version before wrote: a path as it was typed, one scale, nothing of fingerprints and splits."""
    values = np.load(path.parent.parent / "as_it_was.npy")
    mean, std = values.mean(), values.std(ddof=1)

    def forget(saved):
        saved.pop("data")
        saved["data_spec"] = {"shape": [2], "levels": None, "dequantize": True, "data_range": [mean - std, mean + std]}
        section = saved["config"]["data"]
        section[section["name"]]["path"] = data_path
        for options in (section["file"], section["folder"]):
            for later in (
                "layout",
                "held_out_by",
                "as_before",
                "classes" if options is section["folder"] else "",
                "background",
            ):
                options.pop(later, None)

    change(path, forget)


def test_a_run_remembers_fingerprint_and_classes(trained):
    assert load_known_data(trained / "points").class_names == ()
    known = score_sde.load(trained / "zoo").known_data
    assert known.class_names == ("bird 2", "bird 10", "cat", "Dog")
    assert len(known.fingerprint) == 32
    assert known.fingerprint != load_known_data(trained / "points").fingerprint


@pytest.mark.parametrize("change_of", ["value", "added", "removed", "class"])
def test_training_goes_on_with_the_same_data_only(here, capsys, change_of):
    name = "zoo" if change_of == "class" else "points"
    run(capsys, "train", f"--workdir={name}", "--config.training.steps=3", "--quiet")
    numbers = np.load("points.npy")
    if change_of == "value":
        numbers[5, 0] += 1e-9
    elif change_of == "added":
        numbers = np.concatenate([numbers, numbers[:1] / 2])
    elif change_of == "removed":
        numbers = numbers[1:]
    else:
        (here / "pictures" / "cat" / "0.png").rename(here / "pictures" / "Dog" / "9.png")
    np.save("points.npy", numbers)
    before = (here / name / "config.json").read_bytes()
    assert "is not that which" in refused(capsys, "train", f"--workdir={name}", "--config.training.steps=4", "--quiet")
    assert (here / name / "config.json").read_bytes() == before


def test_the_file_may_be_sorted_anew(here, capsys):
    """The run that goes on is the same, bit for bit."""
    shutil.copytree("points", "other")
    run(capsys, "train", "--workdir=points", "--config.training.steps=4", "--quiet")
    np.save("points.npy", np.load("points.npy")[::-1])
    run(capsys, "train", "--workdir=other", "--config.training.steps=4", "--quiet")
    first, second = (score_sde.load(name).model.state_dict() for name in ("points", "other"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_old_run_continues_and_gets_a_fingerprint(here, capsys):
    old(here / "points" / "config.json", "points.npy")
    assert load_known_data(here / "points").fingerprint == ""
    run(capsys, "train", "--workdir=points", "--config.training.steps=3", "--quiet")
    assert len(load_known_data(here / "points").fingerprint) == 32
    assert score_sde.run.load_config(here / "points")[0]["data"]["file"]["held_out_by"] == "position"
    numbers = np.load("points.npy")
    np.save("points.npy", numbers[::-1])  # by position, other samples are held out now
    assert "is not that which" in refused(capsys, "train", "--workdir=points", "--config.training.steps=4", "--quiet")


def test_held_out_samples_stay_held_out_in_a_likelihood(here, capsys):
    """The data has grown: it is said, and every sample that was held out is held out still."""
    command = ("likelihood", "--workdir=points", "--quiet", *FAST)
    assert "changed" not in run(capsys, *command).err
    before = score_sde.run.build_data(score_sde.load("points").config)
    np.save("points.npy", np.concatenate([np.random.default_rng(1).normal(size=(40, 2)), np.load("points.npy")]))
    said = run(capsys, *command).err
    assert "the data has changed since points was trained" in said
    assert "samples keep their side, held out or not" in said
    after = score_sde.run.build_data(score_sde.load("points").config)
    assert set(map(tuple, every(before.test).tolist())) <= set(map(tuple, every(after.test).tolist()))
    other = run(capsys, *command, "--config.data.file.seed=1").err
    assert "held-out samples may be ones that it was trained on" in other


@pytest.mark.parametrize("kind", ["new", "old"])
def test_data_is_found_from_anywhere(here, tmp_path, monkeypatch, capsys, kind):
    if kind == "old":
        old(here / "points" / "config.json", "points.npy")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = run(capsys, "likelihood", f"--workdir={here / 'points'}", "--quiet", "--n=2", *FAST).err
    assert (f"it is taken from {here / 'points.npy'}" in said) == (kind == "old")
    run(capsys, "train", f"--workdir={here / 'points'}", "--config.training.steps=3", "--quiet")
    saved = score_sde.run.load_config(here / "points")[0]
    assert saved["data"]["file"]["path"] == str(here / "points.npy")


def test_data_that_was_moved_may_be_given_again(here, capsys):
    (here / "new").mkdir()
    (here / "points.npy").rename(here / "new" / "p.npy")
    train = ("train", "--workdir=points", "--config.training.steps=3", "--quiet")
    assert "points.npy not found" in (said := refused(capsys, *train))
    assert "--config.data.file.path=" in said
    run(capsys, *train, "--config.data.file.path=new/p.npy")
    assert run(capsys, "likelihood", "--workdir=points", "--quiet", "--n=2", *FAST).err == ""
    np.save("other.npy", np.random.default_rng(5).normal(size=(60, 2)))
    assert "is not that which" in refused(capsys, *train, "--config.data.file.path=other.npy")
    old(here / "points" / "config.json", "points.npy")
    said = refused(capsys, "likelihood", "--workdir=points", "--quiet", *FAST)
    assert f"points.npy not found, nor in {here / 'points'} and the folders above it" in said


def test_a_path_in_the_home(here, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    options = ("--config.data.name=file", "--config.data.file.path=~/points.npy", *TINY, *SHORT)
    run(capsys, "train", "--config=two_moons", "--workdir=home", *options)
    assert score_sde.run.load_config(here / "home")[0]["data"]["file"]["path"] == str(here / "points.npy")


def test_classes_are_shown_and_called_by_name(here, capsys):
    said = run(capsys, "train", "--workdir=zoo", "--config.training.steps=3", "--quiet").out
    assert "4 classes: bird 2 (" in said
    assert "Dog (" in said
    draw = ("sample", "--workdir=zoo", "--solver=ddim", "--nfe=2", "--n=4", "--quiet")
    drawn = {}
    for text in ("cat", "2", "bird 10", "1"):
        out = run(capsys, *draw, f"--class={text}").out
        path = out.split("values:")[1].split()[0]
        drawn[text] = np.load(path)["samples"]
    assert np.array_equal(drawn["cat"], drawn["2"])
    assert np.array_equal(drawn["bird 10"], drawn["1"])
    assert "given class Dog" in run(capsys, "likelihood", "--workdir=zoo", "--quiet", "--n=2", "--class=Dog", *FAST).out
    assert "there is no class 'cow' in this run: it has bird 2, bird 10, cat, Dog" in refused(capsys, *draw, "--class=cow")
    assert "no class 9" in refused(capsys, *draw, "--class=9")
    assert "there is no class 'cat' in this run: its model was trained without classes" in refused(
        capsys, "sample", "--workdir=points", "--quiet", "--class=cat"
    )
    run(capsys, "export", "--workdir=zoo", "--output=exported")
    run(capsys, "sample", "--workdir=exported", *draw[2:], "--class=Dog")


def test_a_class_that_comes_later_does_not_shift_the_others(here):
    """The folder has a new class, which is the second by its name."""
    loaded = score_sde.load("zoo")
    for j in range(6):
        (here / "pictures" / "bird 3").mkdir(exist_ok=True)
        Image.new("L", (3, 3), 240 + j).save(here / "pictures" / "bird 3" / f"{j}.png")
    with pytest.warns(UserWarning, match="the data has changed"):
        data = run_data(loaded, from_saved(loaded.config))
    assert data.class_names == ("bird 2", "bird 10", "cat", "Dog", "bird 3")
    values, classes = torch.cat([*map(every, data[:2])]), torch.cat([data.train.classes, data.test.classes])
    assert (values[classes == 2].float().mean() - 5).abs() < 1e-6  # the cats have 0, 2, ... 10


def test_a_name_that_looks_like_a_number_comes_first(here, capsys):
    change(here / "zoo" / "config.json", lambda saved: saved["data"].update(class_names=["1", "2", "3", "10"]))
    draw = ("sample", "--workdir=zoo", "--solver=ddim", "--nfe=2", "--n=2", "--quiet")
    run(capsys, *draw, "--class=1")
    assert "there is no class '0' in this run: it has 1, 2, 3, 10" in refused(capsys, *draw, "--class=0")
    said = refused(capsys, *draw[:2], "--solver=tuned", "--class=10", "--quiet")
    assert said.strip().endswith("tune --workdir=zoo --class=10")


@pytest.mark.parametrize("data", ["nonsense", {"fingerprint": 3}, {"class_names": [1]}, {"class_names": 5}, []])
def test_nonsense_about_data_is_refused(here, capsys, data):
    change(here / "points" / "config.json", lambda saved: saved.update(data=data))
    assert "config.json" in refused(capsys, "sample", "--workdir=points", "--quiet")
