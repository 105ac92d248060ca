"""What is held out, and the classes that go with it."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from score_sde.data import (
    DataError,
    array_file,
    digits,
    image_folder,
    two_moons,
)
from tests.data.reading import every


def test_the_split_takes_each_row_once_and_follows_the_seed(tmp_path):
    path = str(tmp_path / "rows.npy")
    np.save(path, np.arange(50, dtype=np.float32)[:, None])
    for how in ("position", "content"):
        data = array_file(path, test_fraction=0.3, held_out_by=how)
        train, test = set(every(data.train)[:, 0].tolist()), set(every(data.test)[:, 0].tolist())
        assert len(data.train) + len(data.test) == 50
        assert train | test == set(range(50))
        assert len(data.test) == 15 or how == "content"
        again, other = (array_file(path, test_fraction=0.3, seed=seed, held_out_by=how) for seed in (0, 1))
        assert torch.equal(every(again.test), every(data.test))
        assert not torch.equal(every(other.test), every(data.test))
    with pytest.raises(DataError, match=r"unknown split 'luck'; choose one of content, position"):
        array_file(path, held_out_by="luck")


def test_classes_stay_with_their_samples(tmp_path):
    """Of digits, moons, an array and a folder: each sample has after the split the class it had before."""

    loaded, data = load_digits(), digits()
    known = {tuple(image.ravel().astype(int)): number for image, number in zip(loaded.images, loaded.target, strict=True)}
    for values, classes in ((every(source), source.classes) for source in data[:2]):
        assert [known[tuple(value.flatten().tolist())] for value in values] == classes.tolist()
    moons = two_moons(noise=0.0)
    assert ((every(moons.train)[:, 1] > 0.51) <= (moons.train.classes == 0)).all()  # only the first moon reaches that high
    values = np.arange(30.0).reshape(10, 3)
    np.savez(tmp_path / "data.npz", x=values, kind=np.arange(10) % 4, bad=np.arange(9))
    array = array_file(str(tmp_path / "data.npz"), key="x", classes="kind")
    assert (every(array.train)[:, 0] // 3 % 4 == array.train.classes).all()
    with pytest.raises(DataError, match=r"bad in .* must hold 10 class indices"):
        array_file(str(tmp_path / "data.npz"), key="x", classes="bad")
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("L", (4, 4), grey + i).save(tmp_path / "images" / name / f"{i}.png")
    folder = image_folder(str(tmp_path / "images"), channels=1, test_fraction=0.2)
    assert ((every(folder.train)[:, 0, 0, 0] > 100) == folder.train.classes).all()
    assert set(folder.train.classes.tolist()) == {0, 1}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.01, 0.999])
def test_a_split_that_leaves_nothing_is_refused(tmp_path, fraction):
    np.save(tmp_path / "a.npy", np.arange(10.0)[:, None])
    with pytest.raises(DataError, match=r"held-out fraction|too few to hold out"):
        array_file(str(tmp_path / "a.npy"), test_fraction=fraction)
