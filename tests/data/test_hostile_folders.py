"""An attack on folders of pictures: trees drawn by seed, with everything that people and programs leave in them.

What is read is held against an independent reading of the tree, by the operating system's own walk.
"""

import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError, image_folder
from tests.data.reading import every

pytestmark = pytest.mark.slow

CLASSES = ["0", "2", "10", "cat", "Dog", "a b", "ünï", "B10", "b9", "x.png"]
LEFT = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", ".git", "$RECYCLE.BIN"]


def colour(number: int) -> tuple[int, int, int]:
    """Each picture has a colour of its own."""
    return number % 251, number // 251 % 251, 7


class Forest:
    """A tree of pictures, and what is known of it: the number of each picture that is to be read, and its class."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random, self.number = root, random.Random(seed), 0
        self.wanted: dict[int, str] = {}
        names = self.random.sample(CLASSES, self.random.randint(2, 5))
        for name in names:
            below = root / "tree" / name / ("deep" if self.random.random() < 0.3 else "")
            below.mkdir(parents=True)
            for _ in range(self.random.randint(2, 5)):
                self.picture(below, name)
            for _ in range(self.random.randint(0, 3)):
                self.litter(below)
        outside = root / "outside"
        outside.mkdir()
        if self.random.random() < 0.5:  # a class that is a link
            for _ in range(3):
                self.picture(outside, "linked")
            (root / "tree" / "linked").symlink_to(outside)
        (root / "tree" / names[0] / "loop").symlink_to("..")
        (root / "tree" / "up").symlink_to(root)
        self.litter(root / "tree")

    def picture(self, folder: Path, of_class: str) -> None:
        number, self.number = self.number, self.number + 1
        image = Image.new("RGB", (3, 2), colour(number))
        ending, options = self.random.choice(
            [("png", {}), ("PNG", {}), ("bmp", {}), ("webp", {"lossless": True}), ("tiff", {})]
        )
        if ending == "png" and self.random.random() < 0.5:
            image = image.quantize(4)
        elif ending == "PNG":
            image.putalpha(255)
        path = folder / f"{number}.{ending}"
        if self.random.random() < 0.2:  # reached by a link alone
            path = self.root / f"away_{number}.{ending}"
            (folder / path.name).symlink_to(path)
        image.save(path, **options)
        self.wanted[number] = of_class

    def litter(self, folder: Path) -> None:
        kind = self.random.randrange(8)
        name = f"litter_{self.random.randrange(10**9)}.png"
        if kind == 0:
            left = folder / self.random.choice(LEFT)
            left.mkdir(exist_ok=True)
            Image.new("RGB", (9, 9), (250, 250, 250)).save(left / "0.png")
        elif kind == 1:
            (folder / f"._{name}").write_bytes(b"\0\5\x16\7")
        elif kind == 2:
            os.mkfifo(folder / name)
        elif kind == 3:
            (folder / name).symlink_to("nowhere.png")
        elif kind == 4:
            (folder / f"{name}~").write_bytes(b"")
        elif kind == 5:
            (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        elif kind == 6:
            (folder / name).symlink_to("/dev/null")
        else:
            (folder / "notes.txt").write_text("notes")


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return image_folder(str(path), test_fraction=0.3, **options)


@pytest.mark.parametrize("seed", range(40))
def test_a_forest_is_read_as_it_is(tmp_path, seed):
    forest = Forest(tmp_path, seed)
    data = read(tmp_path / "tree")
    found = {}
    for values, classes in ((every(source), source.classes) for source in data[:2]):
        for value, number in zip(values, classes.tolist(), strict=True):
            red, green, blue = value[:, 0, 0].tolist()
            assert (value == value[:, :1, :1]).all()
            assert blue == 7
            found[red + 251 * green] = data.class_names[number]
    assert found == forest.wanted
    assert len(data.train) + len(data.test) == len(found)
    assert data.class_names == tuple(sorted(set(found.values()), key=by_hand))


def by_hand(name: str) -> int:
    """The natural order of the names above, written down."""
    return ["0", "2", "10", "a b", "b9", "B10", "cat", "Dog", "linked", "x.png", "ünï"].index(name)


@pytest.mark.parametrize("seed", range(20))
def test_one_damaged_picture_among_many_is_named(tmp_path, seed):
    Forest(tmp_path, seed)
    random_ = random.Random(seed)
    files = [p for p in (tmp_path / "tree").rglob("[0-9]*.*") if p.is_file() and not p.is_symlink() and ".git" not in str(p)]
    files = [p for p in files if not any(left in p.parts for left in LEFT)]
    chosen = random_.choice(files)
    content = chosen.read_bytes()
    chosen.write_bytes(random_.choice([b"", content[:9], content[: len(content) // 2], bytes(len(content)), b"GIF89a"]))
    with pytest.raises(DataError, match=f"{chosen.name} is not a readable image"):
        read(tmp_path / "tree")


@pytest.mark.parametrize("seed", range(10))
def test_pictures_that_are_added_move_no_other(tmp_path, seed):
    forest = Forest(tmp_path, seed)
    sides = []
    for _ in range(2):
        data = read(tmp_path / "tree", classes="none")
        sides.append([set(map(tuple, values.flatten(1).tolist())) for values in map(every, data[:2])])
        for name in sorted(set(forest.wanted.values()) - {"linked"}):
            forest.picture(tmp_path / "tree" / name, name)
    assert all(before <= after for before, after in zip(*sides, strict=True))


@pytest.mark.parametrize("flips", range(30))
def test_flipped_bits_are_refused_or_are_a_picture_of_that_size(tmp_path, flips):
    """No format but PNG has checksums, so a flipped bit may be another picture, but never another error than ours."""
    draw = random.Random(flips)
    noise = np.random.default_rng(flips).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for i, ending in enumerate(("png", "jpg", "gif", "bmp", "tif", "webp")):
        folder = tmp_path / ending
        folder.mkdir()
        Image.fromarray(noise).save(folder / f"0.{ending}")
        Image.fromarray(255 - noise).save(folder / f"1.{ending}")
        content = bytearray((folder / f"0.{ending}").read_bytes())
        for _ in range(1 + i):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / f"0.{ending}").write_bytes(content)
        data, refusal = None, ""
        try:
            data = read(folder)
        except DataError as error:
            refusal = str(error)
        if data is None:
            assert f"0.{ending}" in refusal or f"1.{ending}" in refusal  # another size: the one that differs from it
            continue
        assert data.spec.shape == (3, 16, 16)
        if ending == "png":
            values = {tuple(value.permute(1, 2, 0).flatten().tolist()) for value in torch.cat([*map(every, data[:2])])}
            assert values == {tuple(noise.flatten().tolist()), tuple((255 - noise).flatten().tolist())}
