"""What stored axes mean: taken where that is certain, transposed by name, refused where they could mean two things."""

import json
import math

import numpy as np
import pytest
import torch

from score_sde.cli import main
from score_sde.data import DataError, DataWarning, array_file, load_array
from score_sde.data.layout import LAYOUTS, arranged
from score_sde.run import build_data, load_config
from tests.data.reading import every

CERTAIN = [
    (7,),
    (1,),
    (1, 9),
    (3, 100),
    (1, 8, 8),
    (3, 16, 24),
    (4, 5, 5),
    (3, 4, 4),
    (2, 3, 3),
    (1, 2, 2),
    (2, 6, 7, 8),
    (1, 1, 1),
]
UNCERTAIN = [
    (16, 16),
    (100, 2),
    (3, 4),
    (28, 28, 1),
    (16, 16, 3),
    (16, 16, 16),
    (5, 32, 32),
    (1, 64, 3),
    (3, 5, 3),
    (4, 4, 4),
    (8, 8, 8, 1),
]


def counted(*shape: int) -> torch.Tensor:
    """Samples whose values tell their place."""
    return torch.arange(6 * math.prod(shape)).reshape(6, *shape)


@pytest.mark.parametrize("event", CERTAIN, ids=str)
def test_certain_axes_are_taken_as_they_are(event):
    values = counted(*event)
    assert torch.equal(arranged(values, "mine"), values)


@pytest.mark.parametrize("event", UNCERTAIN, ids=str)
def test_what_could_mean_two_things_is_refused_with_what_to_write(event):
    with pytest.raises(DataError, match=r"which axis holds the channels is not certain") as refused:
        arranged(counted(*event), "mine.npy")
    assert all(name in str(refused.value) for name in ("mine.npy", *LAYOUTS))
    option, layout = refused.value.remedy
    assert option == "file.layout"
    arranged(counted(*event), "mine.npy", layout=layout)  # is taken


def test_each_layout_is_what_it_says():
    values = counted(5, 6, 2)
    assert torch.equal(arranged(values, "mine", layout="channels_first"), values)
    assert torch.equal(arranged(values, "mine", layout="channels_last"), torch.stack([values[..., 0], values[..., 1]], 1))
    assert torch.equal(arranged(values, "mine", layout="no_channel")[:, 0], values)
    signals = counted(9, 2)
    assert torch.equal(arranged(signals, "mine", layout="channels_last"), signals.mT)
    with pytest.raises(DataError, match=r"unknown layout 'hwc'; choose one of channels_first"):
        arranged(values, "mine", layout="hwc")
    with pytest.raises(DataError, match=r"vectors of 4 values and have no channels"):
        arranged(counted(4), "mine", layout="channels_last")


@pytest.mark.parametrize(
    ("event", "shape"),
    [
        ((784,), (1, 28, 28)),
        ((28, 28), (1, 28, 28)),
        ((28, 28, 1), (1, 28, 28)),
        ((1, 28, 28), (28, 28)),
        ((16, 16), (16, 16)),
        ((16, 40), (16, 40)),
        ((3, 16, 16), (768,)),
        ((1, 12), (12,)),
    ],
    ids=str,
)
def test_a_shape_that_keeps_the_order_of_the_values_is_taken(event, shape):
    values = counted(*event)
    assert torch.equal(arranged(values, "mine", shape=shape), values.reshape(6, *shape))


@pytest.mark.parametrize(
    ("event", "shape", "message"),
    [
        ((16, 16, 3), (3, 16, 16), "its channels come last: give layout='channels_last'"),
        ((1, 16, 16, 3), (3, 16, 16), "would mix their values up"),
        ((12, 7), (7, 12), "its channels come last"),
        ((16, 20), (20, 16), "would mix their values up"),
        ((4, 6), (2, 12), "would mix their values up"),
        ((16, 20), (1, 20, 16), "would mix their values up"),
        ((3, 16, 20), (3, 20, 16), "would mix their values up"),
        (
            (768,),
            (3, 16, 16),
            "samples of mine are flat, and .* has 3 channels: give layout='channels_first'",
        ),
        ((768,), (16, 48), "has 16 channels"),
        ((768,), (1, 28, 28), "which does not fill"),
        ((4, 4), (-4, -4), "which does not fill"),
    ],
    ids=str,
)
def test_a_shape_that_would_mix_values_up_is_refused(event, shape, message):
    with pytest.raises(DataError, match=message):
        arranged(counted(*event), "mine", shape=shape)


def test_channels_last_and_a_shape_go_together():
    """Also where the pixels lie flat, pixel by pixel."""
    values = counted(16, 20, 3)
    wanted = values.movedim(-1, 1)
    for stored in (values, values.flatten(1)):
        assert torch.equal(arranged(stored, "mine", shape=(3, 16, 20), layout="channels_last"), wanted)
    assert torch.equal(arranged(wanted.flatten(1), "mine", shape=(3, 16, 20), layout="channels_first"), wanted)
    with pytest.raises(DataError, match=r"as they are stored: give layout='channels_first'"):
        arranged(wanted, "mine", shape=(3, 16, 20), layout="channels_last")


def red(path, count: int = 40) -> str:
    """Red pictures, channels last."""
    pictures = np.zeros((count, 16, 16, 3), np.uint8)
    pictures[..., 0] = 255
    pictures[:, 0, 0, 1] = np.arange(count)
    np.save(path, pictures)
    return str(path)


def test_red_pictures_stay_red(tmp_path):
    path = red(tmp_path / "red.npy")
    for options in ({}, {"shape": (3, 16, 16)}):
        with pytest.raises(DataError, match="channels_last"):
            array_file(path, **options)
        data = array_file(path, layout="channels_last", **options)
        assert data.spec.shape == (3, 16, 16)
        assert every(data.train).double().mean((0, 2, 3)).round().tolist() == [255, 0, 0]


def test_masks_have_two_levels(tmp_path):
    mask = np.random.default_rng(0).random((30, 1, 8, 8)) < 0.5
    np.save(tmp_path / "mask.npy", mask)
    assert array_file(str(tmp_path / "mask.npy")).spec.levels == 2
    assert array_file(str(tmp_path / "mask.npy"), levels=3).spec.levels == 3


@pytest.mark.parametrize(
    ("array", "message", "levels"),
    [
        (np.arange(60, dtype=np.float32).reshape(30, 2), "whole numbers stored as float32, which are taken as continuous", "K"),
        (np.arange(60, dtype=np.uint8).reshape(30, 2) % 17, r"8-bit integers up to 16 .* give levels", "17"),
    ],
)
def test_what_may_be_meant_otherwise_is_said(tmp_path, array, message, levels):
    np.save(tmp_path / "a.npy", array)
    with pytest.warns(DataWarning, match=message) as told:
        array_file(str(tmp_path / "a.npy"))
    assert told[0].message.remedy == ("file.levels", levels)


def test_a_likelihood_takes_a_file_by_the_same_rule(tmp_path, capsys):
    """A model of red pictures: channels last are refused, and taken by name; flat ones must say how they were flattened."""
    path, run = red(tmp_path / "red.npy"), f"--workdir={tmp_path / 'run'}"
    small = ["--config.network.unet.width=8", "--config.network.unet.multipliers=(1,)", "--config.network.unet.attention=()"]
    small += ["--config.training.steps=1", "--config.training.batch_size=4", "--config.training.sample_every=0", "--quiet"]
    file = ["--config.data.name=file", f"--config.data.file.path={path}"]
    assert main(["train", "--config=digits_vp", run, *small, *file]) == 2
    assert "layout=channels_last" in capsys.readouterr().err
    assert main(["train", "--config=digits_vp", run, *small, *file, "--config.data.file.layout=channels_last"]) == 0
    score = ["likelihood", run, "--quiet", "--n=2", "--config.likelihood.solver.name=ode", "--config.likelihood.audit=0"]
    score += ["--config.likelihood.solver.ode.method=midpoint", "--config.likelihood.solver.ode.steps=2"]
    first = torch.from_numpy(np.load(path)).movedim(-1, 1)
    flat, first_path = tmp_path / "flat.npy", tmp_path / "first.npy"
    np.save(flat, first.flatten(1).numpy())
    np.save(first_path, first.numpy())
    values = {}
    for stored, layout in ((path, ""), (first_path, "channels_first"), (flat, "channels_first")):
        capsys.readouterr()
        option = [f"--config.data.file.layout={layout}"] if layout else []
        assert main([*score, f"--data={stored}", *option]) == 0
        values[stored] = capsys.readouterr().out.split("bits/dim")[0]
    assert len(set(values.values())) == 1
    assert main([*score, f"--data={path}", "--config.data.file.layout=channels_first"]) == 2
    assert "its channels come last" in capsys.readouterr().err
    assert main([*score, f"--data={first_path}"]) == 2
    assert "--config.data.file.layout=channels_first" in capsys.readouterr().err


def test_an_old_run_reads_its_file_as_before(tmp_path):
    """A config of the version before has no layout: fields were taken as signals, masks had 256 levels."""
    np.save(tmp_path / "mask.npy", np.random.default_rng(0).random((40, 16, 16)) < 0.5)
    section = {"name": "file", "file": {"path": str(tmp_path / "mask.npy"), "key": "", "shape": [], "levels": 0, "seed": 0}}
    config = {"seed": 0, "data": section, "sde": {}, "network": {}, "model": {}}
    (tmp_path / "config.json").write_text(json.dumps({"config": config, "data_spec": {"shape": [16, 16], "levels": 256}}))
    config, spec = load_config(tmp_path)
    assert build_data(config).spec == spec


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    cases = {
        "big": (np.array([[1], [2**63 + 5]], np.uint64), "do not fit into 64 bits"),
        "long": (np.ones((3, 2), np.longdouble), "store them as float64"),
        "huge": (np.random.default_rng(0).normal(size=(30, 2)) * 1e200, "in a unit in which they are nearer to 1"),
        "tiny": (np.random.default_rng(0).normal(size=(30, 2)) * 1e-200, "in a unit in which they are nearer to 1"),
        "overflown": (np.array([[1.0, 2.0], [1e5, 0.0]]).astype(np.float16), "NaN or infinite"),
        "record": (np.zeros((3, 2), [("a", "f4")]), "real numbers or integers are needed"),
        "bytes": (np.array([[b"a"]]), "real numbers or integers are needed"),
    }
    for name, (array, message) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(DataError, match=rf"{name}.npy.*{message}"):
            array_file(str(tmp_path / f"{name}.npy"))
    np.save(tmp_path / "long.npy", np.array([[2**62 + 1, 7]], np.uint64))
    assert load_array(str(tmp_path / "long.npy")).tolist() == [[2**62 + 1, 7]]
    with pytest.raises(DataError, match=r"one array without a name: leave 'x' away"):
        load_array(str(tmp_path / "long.npy"), "x")
