"""Folders of pictures as people have them: what is read, how it is turned, and what is said of the rest."""

import os
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError, DataSpec, DataWarning, image_folder
from tests.data.reading import every, sorted_rows


def pictures(folder, count=4, *, grey=0, size=(4, 4), ending="png"):
    """Grey pictures of the values ``grey``, ``grey + 1``, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("L", size, grey + i).save(folder / f"{i}.{ending}")


def read(folder, **options):
    """The data set, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return image_folder(str(folder), **{"channels": 1, "test_fraction": 0.5, **options})


def everything(data) -> torch.Tensor:
    return torch.cat([every(data.train), every(data.test)])


def greys(data) -> list[int]:
    return sorted(everything(data)[:, 0, 0, 0].tolist())


def by_class(data) -> dict[str, list[int]]:
    values, classes = everything(data)[:, 0, 0, 0], torch.cat([data.train.classes, data.test.classes])
    return {name: sorted(values[classes == i].tolist()) for i, name in enumerate(data.class_names)}


# what is read


def test_classes_are_in_natural_order_beside_an_editors_leftovers(tmp_path):
    for number in range(12):
        for i in range(3):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            Image.new("L", (4, 4), number).save(tmp_path / str(number) / f"{i}.png")
    pictures(tmp_path / ".ipynb_checkpoints", grey=99)
    data = read(tmp_path)
    assert data.class_names == tuple(map(str, range(12)))
    for values, classes in ((every(source), source.classes) for source in data[:2]):
        assert (values[:, 0, 0, 0] == classes).all()


def test_names_are_sorted_by_number_and_letter(tmp_path):
    names = ["B2", "a10", "a9", "Z", "b10", "2", "10"]
    for i, name in enumerate(names):
        pictures(tmp_path / name, 2, grey=10 * i)
    data = read(tmp_path)
    assert data.class_names == ("2", "10", "a9", "a10", "B2", "b10", "Z")
    assert by_class(data) == {name: [10 * names.index(name), 10 * names.index(name) + 1] for name in data.class_names}


LEFTOVERS = (
    ".ipynb_checkpoints/0.png",
    "__MACOSX/._0.png",
    "__MACOSX/0.png",
    "@eaDir/0.png",
    ".thumbnails/0.png",
    ".hidden.png",
    "cat/._0.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png",
    "cat/@eaDir/0.png",
    "cat/0.png~",
    "cat/Thumbs.db",
    "cat/.DS_Store",
    "$RECYCLE.BIN/0.png",
)


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_are_skipped_and_said(tmp_path, name):
    pictures(tmp_path / "cat", grey=0)
    pictures(tmp_path / "dog", grey=50)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"skipped 1 (hidden, or left over|files of other types)"):
        data = image_folder(str(tmp_path), channels=1, test_fraction=0.5)
    assert by_class(data) == {"cat": [0, 1, 2, 3], "dog": [50, 51, 52, 53]}


def test_nothing_is_said_of_a_tidy_folder(tmp_path):
    pictures(tmp_path / "cat")
    pictures(tmp_path / "dog", grey=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(str(tmp_path), channels=1, test_fraction=0.5)


def test_links_are_followed_and_each_file_is_read_once(tmp_path):
    pictures(tmp_path / "far", grey=100)
    pictures(tmp_path / "far2", 1, grey=200)
    root = tmp_path / "here"
    pictures(root)
    (root / "more").symlink_to("../far")  # a folder
    (root / "one.png").symlink_to("../far2/0.png")  # a file
    (root / "again.png").symlink_to("0.png")  # a file that is there already
    (root / "loop").symlink_to(".")
    (root / "up").symlink_to("..")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "itself").symlink_to("itself")
    (tmp_path / "far" / "back").symlink_to("../here")
    assert greys(read(root)) == [0, 1, 2, 3, 100, 101, 102, 103, 200]
    with pytest.warns(
        UserWarning, match=r"1 links to what was read already \(again.png\), 2 broken links .*, 3 links to a folder above"
    ):
        image_folder(str(root), channels=1)


def test_linked_class_folders(tmp_path):
    pictures(tmp_path / "pool" / "x", grey=0)
    pictures(tmp_path / "pool" / "y", grey=50)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "cat").symlink_to("../pool/x")
    (tmp_path / "classes" / "dog").symlink_to("../pool/y")
    assert by_class(read(tmp_path / "classes")) == {"cat": [0, 1, 2, 3], "dog": [50, 51, 52, 53]}
    (tmp_path / "classes" / "kitty").symlink_to("../pool/x")
    with pytest.raises(DataError, match=r"kitty leads to the same as .*cat, in another class"):
        read(tmp_path / "classes")
    assert greys(read(tmp_path / "classes", classes="none")) == [0, 1, 2, 3, 50, 51, 52, 53]


def test_pipes_and_sockets_do_not_hang(tmp_path):
    pictures(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        with pytest.warns(UserWarning, match=r"3 pipes, sockets or devices \(pipe.png, socket.png, zero.png\)"):
            data = image_folder(str(tmp_path), channels=1, test_fraction=0.5)
    assert greys(data) == [0, 1, 2, 3]


def test_a_stray_picture_beside_class_folders_is_refused(tmp_path):
    pictures(tmp_path / "cat")
    pictures(tmp_path / "dog", grey=50)
    Image.new("L", (4, 4), 99).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"1 pictures \(stray.png\) lie beside the folders cat, dog .*classes='folders'"):
        read(tmp_path)
    assert by_class(read(tmp_path, classes="folders")) == {"cat": [0, 1, 2, 3], "dog": [50, 51, 52, 53]}
    data = read(tmp_path, classes="none")
    assert (data.train.classes, data.class_names) == (None, ())
    assert greys(data) == [0, 1, 2, 3, 50, 51, 52, 53, 99]


def test_one_folder_is_no_class_and_an_empty_one_is_said(tmp_path):
    pictures(tmp_path / "cat")
    assert read(tmp_path).train.classes is None
    assert read(tmp_path, classes="folders").class_names == ("cat",)
    pictures(tmp_path / "dog")
    (tmp_path / "cow").mkdir()
    with pytest.warns(UserWarning, match=r"1 folders without pictures \(cow\)"):
        data = image_folder(str(tmp_path), channels=1, test_fraction=0.5)
    assert data.class_names == ("cat", "dog")


# how it is read


@pytest.mark.parametrize("kind", ["png", "webp", "tif", "tif of colours"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_orientation_says(tmp_path, orientation, kind):
    """The eight orientations, by where the top left corner of the stored rows stands in the picture (EXIF 2.3, tag 274)."""
    stored = np.zeros((16, 24), np.uint8)
    stored[:8, :8] = 255  # the corner of the first row and column
    stored[8:, :8] = 100  # below it
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(2):
        image = Image.fromarray(stored)
        if kind == "webp":
            image.save(tmp_path / f"{i}.webp", exif=exif, lossless=True)
        elif kind == "png":
            image.save(tmp_path / f"{i}.png", exif=exif)
        else:
            image = image.convert("RGB") if "colours" in kind else image
            image.save(tmp_path / f"{i}.tif", tiffinfo={0x0112: orientation}, compression="tiff_lzw" if i else None)
    ways = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }
    data = read(tmp_path)
    wanted = torch.from_numpy(ways[orientation](stored).copy())[None]
    assert data.spec.shape == wanted.shape
    assert torch.equal(every(data.train)[0], wanted)
    assert torch.equal(every(data.test)[0], wanted)


def test_jpegs_of_a_camera_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(4):
        Image.new("L", (24, 16)).save(tmp_path / f"{i}.jpg", exif=exif)
    assert read(tmp_path).spec.shape == (1, 24, 16)


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a key", "L with a key"])
def test_transparent_parts_are_drawn_over_the_background(tmp_path, mode, channels, background):
    """The colour that is stored where nothing can be seen does not appear."""
    hidden, shown, behind = 90, 30, 255 if background == "white" else 0
    for i in range(2):
        if mode == "P":
            image = Image.fromarray(np.array([[0, 1]], np.uint8))
            image.putpalette([hidden] * 3 + [shown] * 3)
            image.save(tmp_path / f"{i}.png", transparency=0)
            continue
        colours = "L" if mode.startswith("L") else "RGB"
        image = Image.fromarray(np.array([[hidden, shown]], np.uint8)).convert(colours)
        if "key" in mode:
            image.save(tmp_path / f"{i}.png", transparency=hidden if colours == "L" else (hidden,) * 3)
        else:
            image.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
            image.save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match=f"2 have transparent parts, which are drawn over {background}"):
        data = image_folder(str(tmp_path), channels=channels, background=background, test_fraction=0.5)
    assert every(data.train)[0].tolist() == [[[behind, shown]]] * channels


def test_half_transparent_and_opaque_pictures(tmp_path):
    for i in range(2):
        Image.new("RGBA", (2, 2), (200, 100, 0, 51)).save(tmp_path / f"{i}.png")
    assert every(read(tmp_path, channels=3).train)[0, :, 0, 0].tolist() == [
        244,
        224,
        204,
    ]  # a fifth of the colour, the rest white
    for i in range(2):
        Image.new("RGBA", (2, 2), (200, 100, 0, 255)).save(tmp_path / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = image_folder(str(tmp_path), test_fraction=0.5)
    assert every(data.train)[0, :, 0, 0].tolist() == [200, 100, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_palettes_are_colours(tmp_path, channels):
    for i in range(2):
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        image.putpalette([7, 7, 7, 200, 200, 200, 255, 0, 0])
        image.save(tmp_path / f"{i}.{'png' if i else 'gif'}")
    rows = [[7, 200, 76]] if channels == 1 else [[7, 200, 255], [7, 200, 0], [7, 200, 0]]  # 76: the luminance of red
    assert every(read(tmp_path, channels=channels).train)[0, :, 0].tolist() == rows


def test_black_and_white_pictures_are_0_and_255(tmp_path):
    for i in range(2):
        Image.fromarray(np.array([[False, True]])).save(tmp_path / f"{i}.png")
    assert every(read(tmp_path).train)[0].tolist() == [[[0, 255]]]


def test_the_first_of_several_frames_is_taken_and_said(tmp_path):
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 20, 30)]
    for i, name in enumerate(("a.gif", "b.tif", "c.webp", "d.png")):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if i == 2 else {}))
    with pytest.warns(UserWarning, match=r"4 hold several frames or pages, of which the first is taken"):
        data = image_folder(str(tmp_path), channels=1, test_fraction=0.5)
    assert greys(data) == [10] * 4


def test_a_file_is_read_as_what_it_is(tmp_path):
    """Whatever it is called."""
    for i, kind in enumerate(("PNG", "JPEG", "BMP", "GIF")):
        Image.new("L", (4, 4), 8 * i).save(tmp_path / f"{i}.tiff", format=kind)
    assert greys(read(tmp_path)) == [0, 8, 16, 24]


def test_a_phones_picture_with_a_preview_is_its_first(tmp_path):
    for i in range(2):
        Image.new("L", (8, 8), 40).save(
            tmp_path / f"{i}.jpg", format="MPO", save_all=True, append_images=[Image.new("L", (4, 4))]
        )
    assert greys(read(tmp_path)) == [40, 40]


def test_grey_pictures_in_three_channels_are_said(tmp_path):
    pictures(tmp_path)
    with pytest.warns(DataWarning, match=r"all pictures are grey, and channels=1 makes one channel of them") as told:
        image_folder(str(tmp_path), test_fraction=0.5)
    assert told[0].message.remedy == ("folder.channels", "1")


def deep_colour(path):
    """A PNG of 16 bits a channel, written by hand."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">6H", *[1000] * 6) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


REFUSED = {
    "deep.png": (lambda path: Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(path), "more than 8 bits"),
    "deep_colour.png": (deep_colour, "more than 8 bits"),
    "deep.tif": (lambda path: Image.fromarray(np.full((2, 2), 1000, np.uint16)).save(path), "more than 8 bits"),
    "float.tif": (lambda path: Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(path), "more than 8 bits"),
    "int.tif": (lambda path: Image.fromarray(np.full((2, 2), 5, np.int32)).save(path), "more than 8 bits"),
    "print.jpg": (lambda path: Image.new("CMYK", (4, 4)).save(path), "colours of the kind CMYK"),
    "lab.tif": (lambda path: Image.new("LAB", (4, 4)).save(path), "colours of the kind LAB"),
    "empty.png": (lambda path: path.write_bytes(b""), "it is empty"),
    "program.png": (lambda path: Image.new("L", (4, 4)).save(path, format="EPS"), "is not a readable image"),
    "other.png": (lambda path: Image.new("L", (4, 4)).save(path, format="PPM"), "is not a readable image"),
    "text.jpg": (lambda path: path.write_text("no picture"), "is not a readable image"),
    "header.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "is not a readable image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_cannot_be_used_are_refused_by_name(tmp_path, name):
    pictures(tmp_path)
    write, message = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_pictures_that_were_cut_off_are_refused_by_name(tmp_path, ending):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noise.save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"whole.{ending}").unlink()
    (tmp_path / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"cut.{ending} is not a readable image"):
        read(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    pictures(tmp_path, size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="is not a readable image"):
        read(tmp_path)


def test_a_run_of_before_reads_its_folder_as_it_did(tmp_path):
    """Classes by letters, hidden files too, nothing turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (0, 2, 10):
        (tmp_path / str(number)).mkdir()
        for i in range(2):
            Image.new("L", (6, 4), number).save(tmp_path / str(number) / f"{i}.png", exif=exif)
    data = read(tmp_path, as_before=True)
    assert data.class_names == ("0", "10", "2")
    assert data.spec.shape == (1, 4, 6)
    (tmp_path / ".x").mkdir()
    Image.new("L", (6, 4), 99).save(tmp_path / ".x" / "0.png")
    assert by_class(read(tmp_path, as_before=True)) == {".x": [99], "0": [0, 0], "10": [10, 10], "2": [2, 2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "yes"}, "unknown classes 'yes'; choose one of auto, folders, none"),
        ({"background": "red"}, "unknown background 'red'; choose one of white, black"),
        ({"size": -1}, "size must be"),
    ],
)
def test_options_that_do_not_exist_are_refused(tmp_path, options, message):
    pictures(tmp_path)
    with pytest.raises(DataError, match=message):
        read(tmp_path, **options)


def test_a_folder_that_is_hidden_itself_and_one_in_the_home(tmp_path, monkeypatch):
    pictures(tmp_path / ".pictures")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert greys(read("~/.pictures")) == [0, 1, 2, 3]


def test_image_folder_reads_every_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
    (tmp_path / "below").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / ("below" if i % 2 else "") / f"{i}.{'PNG' if i % 3 else 'png'}")
    (tmp_path / "notes.txt").write_text("not an image")
    data = image_folder(str(tmp_path))
    assert len(data.train) + len(data.test) == 10
    assert data.spec == DataSpec((3, 4, 6), levels=256)
    assert sorted_rows(torch.cat([every(data.train), every(data.test)])) == sorted_rows(
        torch.from_numpy(pixels).permute(0, 3, 1, 2)
    )


def test_grey_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 6), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path), channels=1)
    assert data.spec.shape == (1, 4, 6)
    assert sorted_rows(torch.cat([every(data.train), every(data.test)])) == sorted_rows(torch.from_numpy(pixels))
    colour = image_folder(str(tmp_path), channels=3)
    assert sorted_rows(torch.cat([every(colour.train), every(colour.test)])) == sorted_rows(
        torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1)
    )


def test_images_of_mixed_sizes_need_size(tmp_path):
    for i in range(4):
        Image.new("RGB", (20 + 4 * i, 12), (10, 200, 30)).save(tmp_path / f"{i}.png")
    hint = r"1.png has 24 x 12 pixels, .*0.png has 20 x 12: give a size"
    with pytest.raises(DataError, match=hint) as refused:
        image_folder(str(tmp_path), test_fraction=0.5)
    assert refused.value.remedy == ("folder.size", "12")
    data = image_folder(str(tmp_path), size=6, test_fraction=0.5)
    assert data.spec.shape == (3, 6, 6)
    assert (every(data.train) == torch.tensor([10, 200, 30]).reshape(3, 1, 1)).all()


def test_size_crops_to_the_centre(tmp_path):
    for i in range(4):
        wide = np.zeros((8, 24), np.uint8)
        wide[:, 8:16] = 77  # the centred square
        wide[:, :8] = 255
        Image.fromarray(wide if i % 2 else wide.T).save(tmp_path / f"{i}.png")
    data = image_folder(str(tmp_path), size=4, channels=1, test_fraction=0.5)
    assert (torch.cat([every(data.train), every(data.test)]) == 77).all()


def test_unreadable_and_deep_images_are_refused(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a.png is not a readable image"):
        image_folder(str(tmp_path / "text"))
    (tmp_path / "cut").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut" / "a.png").write_bytes((tmp_path / "whole.png").read_bytes()[:400])
    with pytest.raises(DataError, match=r"a.png is not a readable image"):
        image_folder(str(tmp_path / "cut"))
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "deep" / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        image_folder(str(tmp_path / "deep"), channels=1)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        image_folder(str(tmp_path))
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"is not a folder|path is empty"):
            image_folder(path)
    with pytest.raises(DataError, match="channels must be 1 or 3, got 4"):
        image_folder(str(tmp_path), channels=4)
