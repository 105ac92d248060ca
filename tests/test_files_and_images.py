"""Files that are whole or not there, and pictures of samples of every shape."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.files import write_atomically, write_json, write_text
from score_sde.images import image_grid, picture, save_png


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    write_text(path, "again")
    assert path.read_text() == "again"
    assert list(path.parent.iterdir()) == [path]
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}


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
