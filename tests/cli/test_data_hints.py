"""What a command says of data that it cannot use: the sentence of the library, and what to type."""

import numpy as np
import pytest
from PIL import Image

from score_sde.cli import main
from tests.cli.conftest import refused


def pictures(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + i, 4)).save(folder / name)


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.arange(60).reshape(30, 2), "levels=K"),
        (np.zeros((30, 8, 8)), "layout=no_channel"),
        (np.zeros((30, 8, 8, 3)), "layout=channels_last"),
    ],
)
def test_of_an_array(tmp_path, capsys, array, hint):
    np.save(tmp_path / "a.npy", array)
    data = ("--config.data=file", f"--config.data.file.path={tmp_path / 'a.npy'}")
    said = refused(capsys, "train", "--config=two_moons", f"--workdir={tmp_path / 'run'}", *data)
    assert said.endswith(f" (--config.data.file.{hint})\n")


@pytest.mark.parametrize(
    ("names", "options", "hint"),
    [
        (("a.png", "b.png"), (), "size=4"),
        (("cat/a.png", "dog/a.png", "c.png"), (), "classes=folders"),
        (("a.png",), ("--config.data.folder.classes=folders",), "classes=none"),
    ],
)
def test_of_a_folder(tmp_path, capsys, names, options, hint):
    pictures(tmp_path / "pictures", *names)
    data = ("--config.data=folder", f"--config.data.folder.path={tmp_path / 'pictures'}")
    said = refused(capsys, "train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", *data, *options)
    assert said.endswith(f" (--config.data.folder.{hint})\n")


@pytest.mark.parametrize("kind", ["file", "folder", "cifar10"])
def test_of_no_data(tmp_path, capsys, kind):
    said = refused(capsys, "train", "--config=digits_vp", f"--workdir={tmp_path / 'run'}", f"--config.data={kind}")
    assert f" (--config.data.{kind}.path=" in said


def test_of_a_likelihood(moons, tmp_path, capsys):
    """The key has an option of its own there."""
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros((3, 2)))
    said = refused(capsys, "likelihood", f"--workdir={moons}", f"--data={tmp_path / 'a.npz'}")
    assert said.endswith("holds x, y: choose one by its key (--key=x)\n")


def test_of_a_warning(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 5, (30, 2)).astype(np.uint8))
    short = ("--config.training.steps=1", "--config.training.sample_every=0", "--quiet")
    data = ("--config.data=file", f"--config.data.file.path={tmp_path / 'a.npy'}")
    assert main(["train", "--config=two_moons", f"--workdir={tmp_path / 'run'}", *data, *short]) == 0
    assert "if it has fewer, give levels (--config.data.file.levels=5)\n" in capsys.readouterr().err
