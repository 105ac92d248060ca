"""Files that are whole or not there, and pictures of samples of every shape."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from score_sde.files import (
    DamagedError,
    append_metrics,
    check_sealed,
    read_json,
    read_metrics,
    read_npz,
    read_safetensors,
    remove_leftovers,
    write_atomically,
    write_json,
    write_npz,
    write_safetensors,
    write_sealed,
    write_text,
)
from score_sde.images import image_grid, picture, save_png


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    write_text(path, "again")
    assert path.read_text() == "again"
    assert list(path.parent.iterdir()) == [path]
    write_json(path, {"a": [1, 2.5, None]})
    assert read_json(path) == {"a": [1, 2.5, None]}
    assert json.loads(path.read_text()).items() >= {"a": [1, 2.5, None]}.items()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "data.bin"

    def write(file):
        file.write(b"half of the n")
        raise error("the disk is full")

    for existed in (False, True):
        if existed:
            path.write_bytes(b"the old content")
        with pytest.raises(error):
            write_atomically(path, write)
        assert list(tmp_path.iterdir()) == ([path] if existed else [])
    assert path.read_bytes() == b"the old content"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    write_atomically(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


# digests

ARRAYS = {"a": np.arange(3.0), "b": np.arange(4).reshape(2, 2)}
WEIGHTS = {"a": torch.arange(3.0), "b": torch.arange(4).reshape(2, 2)}


def read_checkpoint(path):
    check_sealed(path)
    return torch.load(path, weights_only=True)


KINDS = {
    "json": (lambda path: write_json(path, {"a": [1, 2.5, None], "b": {"c": "d"}}), read_json),
    "npz": (lambda path: write_npz(path, ARRAYS), read_npz),
    "safetensors": (lambda path: write_safetensors(path, WEIGHTS, {"step": "3"}), read_safetensors),
    "zip": (lambda path: write_sealed(path, lambda file: torch.save(WEIGHTS, file)), read_checkpoint),
}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return np.array_equal(a, b) and getattr(a, "dtype", None) == getattr(b, "dtype", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "file"
    write(path)
    whole, expected = path.read_bytes(), read(path)
    for place in range(0, 8 * len(whole), 1 + len(whole) // 100):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except DamagedError as error:
            assert str(path) in str(error)  # noqa: PT017  (most flips raise, some may not)
            continue
        assert same(found, expected), place
    path.write_bytes(whole)
    assert same(read(path), expected)


def test_files_of_versions_without_digests_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert same(read_npz(tmp_path / "a.npz"), ARRAYS)
    safetensors.torch.save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert same(read_safetensors(tmp_path / "a.safetensors"), (WEIGHTS, {}))
    torch.save(WEIGHTS, tmp_path / "a.pt")
    assert check_sealed(tmp_path / "a.pt") is False
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(WEIGHTS["a"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DamagedError, match=r"a.pt is damaged: the CRC of its entry"):
        check_sealed(tmp_path / "a.pt")


def test_other_readers_read_files_with_digests(tmp_path):
    for kind, (write, _) in KINDS.items():
        write(tmp_path / f"a.{kind}")
    assert json.loads((tmp_path / "a.json").read_text())["a"] == [1, 2.5, None]
    with np.load(tmp_path / "a.npz") as saved:
        assert same(dict(saved), ARRAYS)
    assert same(safetensors.torch.load_file(tmp_path / "a.safetensors"), WEIGHTS)
    assert same(torch.load(tmp_path / "a.zip", weights_only=True, mmap=True), WEIGHTS)


def test_an_edited_json_is_read_by_who_accepts_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1, "b": [2.0]})
    path.write_text(json.dumps(json.loads(path.read_text())))  # other blanks are no change
    assert read_json(path) == {"a": 1, "b": [2.0]}
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(DamagedError, match="or was edited by hand"):
        read_json(path)
    assert read_json(path, accept_edited=True) == {"a": 2, "b": [2.0]}


def test_damaged_lines_are_left_out_and_all_others_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')  # of a version without digests
    for step in range(2, 7):
        append_metrics(path, {"step": step, "loss": 1 / step, "seconds": 0.1})
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"loss": 0.3', '"loss": 0.4')
    lines[4] = lines[4][:12]
    path.write_text("\n".join(lines) + '\n[3]\n{"loss": 1.0}\n{"step": 9, "lo')
    values, damaged = read_metrics(path)
    assert [line["step"] for line in values] == [1, 2, 4, 6]
    assert damaged == [3, 5, 7, 8, 9]


# leftovers


def test_leftovers_of_killed_processes_are_removed_and_files_in_use_are_not(tmp_path):
    names = [".config.json.ab_c12de", "samples/.a.png.x", ".000000003.pt.half", "samples/.x.npz.12345678"]
    others = [".hidden", "config.json", ".notes.txt.backup1", "samples/a.png"]
    (tmp_path / "samples").mkdir()
    for name in names + others:
        (tmp_path / name).write_text("x")
    seen = []

    def write(file):
        remove_leftovers(tmp_path)
        seen.extend(path.name for path in tmp_path.glob(".run.json.*"))
        file.write(b"content")

    write_atomically(tmp_path / "run.json", write)
    assert len(seen) == 1
    assert (tmp_path / "run.json").read_bytes() == b"content"
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted([*others, "run.json"])


# grids


def test_grey_pixels_land_where_they_should():
    images = torch.linspace(0, 1, 3 * 2 * 4).reshape(3, 1, 2, 4)
    grid = image_grid(images, tile=4)
    pixels = np.asarray(grid)
    assert grid.mode == "L"
    assert pixels.shape == (2 + 2 * (2 + 2), 2 + 2 * (4 + 2))  # 2 rows and 2 columns with gaps of 2 around each
    expected = np.full(pixels.shape, 255)
    for i, (top, left) in enumerate([(2, 2), (2, 8), (6, 2)]):
        expected[top : top + 2, left : left + 4] = np.round(images[i, 0].numpy() * 255)
    np.testing.assert_array_equal(pixels, expected)


def test_colours_keep_their_channels_and_small_images_are_enlarged():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0, 0, 1] = 1.0  # red, top right
    image[0, 2, 1, 0] = 0.4  # blue, bottom left
    grid = image_grid(image, tile=6)
    pixels = np.asarray(grid)
    assert grid.mode == "RGB"
    assert pixels.shape == (2 + 6 + 2, 2 + 6 + 2, 3)
    assert (pixels[2:5, 5:8] == (255, 0, 0)).all()
    assert (pixels[5:8, 2:5] == (0, 0, 102)).all()
    assert (pixels[2:5, 2:5] == 0).all()


def test_other_channels_become_grey_tiles_one_row_a_sample():
    images = torch.arange(6.0).reshape(3, 2, 1, 1).expand(3, 2, 2, 2) / 6
    grid = image_grid(images, tile=2)
    pixels = np.asarray(grid)
    assert grid.mode == "L"
    assert pixels.shape == (2 + 3 * 4, 2 + 2 * 4)
    np.testing.assert_array_equal(pixels[2::4, 2::4], np.round(np.arange(6).reshape(3, 2) / 6 * 255))


def test_values_outside_are_clamped_and_columns_can_be_chosen():
    images = torch.tensor([-3.0, 0.0, 1.0, 9.0]).reshape(4, 1, 1, 1)
    pixels = np.asarray(image_grid(images, columns=4, tile=1))
    assert pixels.shape == (5, 14)
    assert pixels[2, 2::3].tolist() == [0, 0, 255, 255]


# pictures


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (1, 16), (3, 16), (1, 8, 8), (2, 8, 8), (3, 8, 8), (1, 4, 8, 8)])
def test_samples_of_every_shape_give_a_picture_of_them(shape):
    samples = torch.rand(12, *shape)
    drawn = picture(samples)
    assert isinstance(drawn, Image.Image)
    pixels = np.asarray(drawn.convert("L"))
    inside = pixels[60:-60, 80:-40] if len(shape) < 3 else pixels  # without the labels of the axes
    assert inside.std() > 3
    other = picture(torch.rand(12, *shape) ** 3)
    assert not np.array_equal(pixels, np.asarray(other.convert("L")))


def test_volumes_are_shown_by_their_middle_slices():
    volumes = torch.rand(5, 1, 4, 8, 8)
    assert picture(volumes).tobytes() == image_grid(volumes[:, :, 2]).tobytes()
    changed = volumes.clone()
    changed[:, :, :2] = 0
    assert picture(changed).tobytes() == picture(volumes).tobytes()


@pytest.mark.parametrize("shape", [(2,), (5,)])
def test_limits_fix_the_axes(shape):
    samples = torch.rand(12, *shape)
    assert picture(samples, limits=(-4, 4)).tobytes() != picture(samples).tobytes()
    far = picture(samples + 100, limits=(-4, 4))  # nothing of it is within the limits
    empty = picture(samples[:0], limits=(-4, 4)) if shape == (2,) else picture(samples - 100, limits=(-4, 4))
    assert far.tobytes() == empty.tobytes()


def test_drawing_needs_no_gradient_history():
    assert picture(torch.rand(3, 2, requires_grad=True)).size == (400, 400)
    assert image_grid(torch.rand(3, 1, 8, 8, requires_grad=True)).mode == "L"


def test_png_round_trip(tmp_path):
    grid = image_grid(torch.rand(4, 3, 8, 8))
    save_png(grid, tmp_path / "below" / "grid.png")
    with Image.open(tmp_path / "below" / "grid.png") as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), np.asarray(grid))
