"""Training from Python in one call leaves a run like that of the command."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from score_sde import VESDE, VPSDE, TrainingOptions, fit, load
from score_sde.cli import main
from score_sde.data import DataSpec, TensorSource, read, standardized, two_moons
from score_sde.files import read_json, write_json
from score_sde.networks import MLP, UNet
from score_sde.objectives import DenoisingScoreMatching
from score_sde.run import build_objective
from score_sde.sdes import ddpm_schedule
from score_sde.time_sampling import LogSNRTimes
from score_sde.training import TrainStep
from tests.oracles.sdes import QuarterCircleSDE

pytestmark = pytest.mark.usefixtures("undrawn")

SHORT = TrainingOptions(steps=4, batch_size=8, log_every=2, sample_every=0)
LONGER = TrainingOptions(steps=6, batch_size=8, log_every=2, sample_every=0)
SMALL = {"width": 8}


def points(count=60, shape=(2,), seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def trained(data, folder, **how):
    how = {"training": SHORT, "network_options": SMALL, "progress": False, **how}
    return fit(data, folder, **how)


def held_out(folder):
    return json.loads((folder / "config.json").read_text())["config"]["data"]


@pytest.mark.parametrize(
    ("data", "shape", "levels", "network"),
    [
        (points(), (2,), None, MLP),
        (points().double().numpy(), (2,), None, MLP),
        (points().bfloat16(), (2,), None, MLP),
        (points().half(), (2,), None, MLP),
        (points(shape=(2, 6)), (2, 6), None, UNet),
        (torch.randint(256, (60, 1, 4, 4), dtype=torch.uint8), (1, 4, 4), 256, UNet),
        (points(shape=(2, 2, 2, 2)), (2, 2, 2, 2), None, MLP),
        (TensorSource(points(), DataSpec((2,))), (2,), None, MLP),
        (TensorSource(torch.randint(5, (60, 3)), DataSpec((3,), levels=5, dequantize=False)), (3,), 5, MLP),
    ],
    ids=["tensor", "array", "bfloat16", "float16", "signals", "images", "volumes", "source", "integers"],
)
def test_data_of_any_kind_becomes_a_run(tmp_path, data, shape, levels, network):
    run = trained(data, tmp_path / "run")
    again = load(tmp_path / "run")
    assert run.step == again.step == 4
    assert run.model.data == again.model.data
    assert (run.model.data.shape, run.model.data.levels) == (shape, levels)
    assert type(run.model.network) is network
    assert again.model.moments is not None
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_every_command_takes_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained(points(), "run")
    shutil.move("run", "moved")  # its data moves with it
    workdir = "--workdir=moved"
    assert main(["sample", workdir, "--n=4", "--solver=ddim", "--nfe=5", "--quiet"]) == 0
    assert main(["likelihood", workdir, "--split=test", "--n=2", "--quiet"]) == 0
    assert main(["compare", workdir, "--solvers=ddim", "--nfe=5", "--n=6", "--quiet"]) == 0
    assert main(["train", workdir, "--config.training.steps=6", "--quiet"]) == 0
    assert "continuing moved from step 4 of 6" in capsys.readouterr().out


def test_the_same_call_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    whole = trained(points(), tmp_path / "whole", training=LONGER)
    trained(points(), tmp_path / "parts")
    assert main(["train", f"--workdir={tmp_path / 'parts'}", "--config.training.steps=5", "--quiet"]) == 0
    parts = trained(points(), tmp_path / "parts", training=LONGER)
    assert parts.step == 6
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_has_taken_all_steps_is_loaded(tmp_path):
    trained(points(), tmp_path, training=LONGER)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for training in (LONGER, SHORT):
        assert trained(points(), tmp_path, training=training).step == 6
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sde": "ve"}, "another sde"),
        ({"sde": VPSDE(beta_max=3.0)}, "another sde"),
        ({"network_options": {"width": 16}}, "another network"),
        ({"seed": 1}, "another seed"),
        ({"parameterization": "v"}, "another model"),
        ({"data": points(seed=1)}, "the data is not that which"),
    ],
)
def test_a_run_of_other_settings_is_left_alone(tmp_path, change, message):
    trained(points(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        trained(**{"data": points(), "folder": tmp_path, **change})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_settings_are_those_of_the_call(tmp_path):
    objective = DenoisingScoreMatching(weighting="edm", times=LogSNRTimes(stratified=False))
    classes = torch.arange(60) % 3
    run = trained(
        points(), tmp_path, sde=VESDE(sigma_max=7.0), objective=objective, classes=classes, network_options={"classes": 3}
    )
    assert run.model.sde == VESDE(sigma_max=7.0)
    assert build_objective(run.config) == objective
    assert run.config["training"]["steps"] == 4
    assert run.model.classes == 3


def test_a_data_set_keeps_what_it_holds_out(tmp_path):
    data = two_moons(samples=50)
    run = trained(data, tmp_path, network_options={"width": 8, "classes": 2})
    with np.load(tmp_path / "data.npz") as kept:
        assert torch.equal(torch.from_numpy(kept["test"]), read(data.test, slice(None)).values)
        assert torch.equal(torch.from_numpy(kept["train_classes"]), data.train.classes)
    assert run.model.data == data.spec
    assert main(["likelihood", f"--workdir={tmp_path}", "--split=test", "--class=1", "--n=2", "--quiet"]) == 0


def test_a_file_is_left_where_it_is(tmp_path):
    np.save(tmp_path / "mine.npy", points().numpy())
    trained(str(tmp_path / "mine.npy"), tmp_path / "run")
    assert not (tmp_path / "run" / "data.npz").exists()
    assert held_out(tmp_path / "run")["file"]["path"] == str(tmp_path / "mine.npy")


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path, monkeypatch):
    take = TrainStep.__call__

    def interrupted(step, state, batch):
        take(step, state, batch)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped at step 2"):
            trained(points(), tmp_path)
    assert load(tmp_path).step == 2
    assert trained(points(), tmp_path).step == 4


def test_a_table_of_betas_is_written_as_its_betas(tmp_path):
    run = trained(points(), tmp_path / "run", sde=ddpm_schedule(20, beta_end=0.3, t_min=1e-3))
    assert run.model.sde == load(tmp_path / "run").model.sde == ddpm_schedule(20, beta_end=0.3, t_min=1e-3)
    assert run.config["sde"]["ddpm"]["betas"] == list(run.model.sde.betas)


@dataclass(frozen=True)
class Unnamed(DenoisingScoreMatching):
    """An objective that no table has."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sde": "vpp"}, "unknown sde 'vpp', did you mean vp"),
        ({"sde": QuarterCircleSDE(t_min=1e-3)}, "sde QuarterCircleSDE.* cannot be written to config.json: give one of vp"),
        ({"sde": ddpm_schedule(20).respaced("5")}, "^sde TabulatedSDE cannot be written"),
        ({"objective": Unnamed()}, "objective Unnamed.* cannot be written"),
        ({"sde": VPSDE}, r"sde must be an instance, VPSDE\(...\), got the class VPSDE itself"),
        ({"objective": DenoisingScoreMatching}, r"objective must be an instance, DenoisingScoreMatching\(...\), got the class"),
        ({"training": TrainingOptions}, "training must be an instance of TrainingOptions, got the class TrainingOptions"),
        ({"training": {"steps": 3}}, r"training must be an instance of TrainingOptions, got \{'steps': 3\}"),
        ({"network": MLP}, r"unknown network <class '.*MLP'>.*; choose one of mlp, unet"),
        ({"objective": "denoisng"}, "unknown objective 'denoisng', did you mean denoising"),
        ({"network": "unett"}, "unknown network 'unett'"),
        ({"network_options": {"widht": 8}}, "network.mlp has no option widht"),
        ({"parameterization": "noise"}, "unknown parameterization 'noise'"),
        ({"data": torch.randint(5, (60, 3))}, "say how many levels"),
        ({"data": points() * torch.nan}, "NaN"),
        ({"data": "nowhere.npy"}, "not found"),
        ({"data": two_moons(20), "classes": torch.zeros(20)}, "a source says itself what its classes and levels are"),
        ({"data": TensorSource(points(), DataSpec((2,))), "levels": 3}, "a source says itself"),
    ],
)
def test_mistakes_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        trained(**{"data": points(), "folder": tmp_path / "run", **change})
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "data.npz").exists()


@pytest.mark.parametrize(
    "change", [{"data": points() * torch.nan}, {"data": points()[:1]}, {"sde": "vpp"}, {"network_options": {"widht": 8}}]
)
def test_what_is_refused_leaves_the_data_of_the_folder_alone(tmp_path, change):
    """Also where no checkpoint says that the data is in use."""
    (tmp_path / "data.npz").write_bytes(b"data of before")
    with pytest.raises(ValueError):
        trained(**{"data": points(seed=1), "folder": tmp_path, **change})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("data.npz", b"data of before")]


def test_half_precision_is_trained_on_as_float32(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        values = points().to(dtype)
        trained(values, tmp_path / str(dtype))
        with np.load(tmp_path / str(dtype) / "data.npz") as kept:
            assert torch.equal(torch.from_numpy(kept["train"]), values.float())
        assert trained(values, tmp_path / str(dtype), training=LONGER).step == 6


def test_a_run_of_an_older_version_goes_on_and_says_so(tmp_path, capsys):
    trained(points(), tmp_path)
    path = tmp_path / "config.json"
    saved = {key: value for key, value in read_json(path).items() if key != "sha256"}
    write_json(path, {**saved, "begun": {"format": 1, "steps": 4}})
    trained(points(), tmp_path, training=LONGER)
    assert "an earlier version trained it to step 4:" in capsys.readouterr().out


def test_conditions_that_are_no_classes_are_refused(tmp_path):
    class Told(TensorSource):
        def batch(self, rows):
            return super().batch(rows)._replace(cond=self.values[rows])

    with pytest.raises(ValueError, match="told classes, and the source has other conditions"):
        trained(Told(points(), DataSpec((2,))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scaling_that_is_not_kept_is_said(tmp_path, recwarn):
    fast = {"network_options": {"width": 4}, "training": TrainingOptions(steps=1, sample_every=0), "progress": False}
    fit(two_moons(200), tmp_path / "measured", **fast)
    assert not [warning for warning in recwarn if "a scaling of its own" in str(warning.message)]
    values = torch.randn(200, 2)
    for spec in (DataSpec((2,), location=(0.0, 0.0), spread=(5.0, 5.0)), DataSpec((2,), data_range=(-4.0, 4.0))):
        with pytest.warns(UserWarning, match="a scaling of its own, which fit does not keep"):
            fit(TensorSource(values, spec), tmp_path / f"own{spec.spread}", **fast)


def test_limits_are_kept_or_it_is_said(tmp_path, recwarn):
    """One pair for all coordinates is kept, in the run and for what goes on from it; a pair for each is measured anew."""
    values = points()
    spec = standardized(TensorSource(values, DataSpec((2,))))
    source = TensorSource(values, replace(spec, limits=((-9.0, 9.0),)))
    assert trained(source, tmp_path / "one").model.data.limits == ((-9.0, 9.0),)
    assert trained(source, tmp_path / "one", training=LONGER).model.data.limits == ((-9.0, 9.0),)
    assert not [warning for warning in recwarn if "of its own" in str(warning.message)]
    with pytest.warns(UserWarning, match="the data has limits of its own, which fit does not keep"):
        trained(TensorSource(values, replace(spec, limits=((-9.0, 9.0), (-8.0, 8.0)))), tmp_path / "each")
