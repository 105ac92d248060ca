"""The attack on a run: flipped bits, faults of the system, killed and doubled processes, files with nonsense in them.

Whatever happens, a run is refused with a sentence that names the file, or it gives the same numbers; and nothing is lost.
"""

import builtins
import contextlib
import copy
import errno
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from score_sde import load
from score_sde.cli import main
from score_sde.data import DataError, DataSpec, Moments, load_array
from score_sde.files import DamagedError, read_json, read_metadata, read_metrics, read_npz
from score_sde.objectives import DenoisingScoreMatching
from score_sde.run import build_data, load_config, load_identity, load_moments, load_tuned, save_choice, save_model
from score_sde.solvers import DDIM, UniPC
from score_sde.solvers.tuned import Choice
from score_sde.training import STANDARD_HOOKS, Trainer, TrainingOptions, begin, resume

TINY = (
    "--config.network.mlp.width=8",
    "--config.network.mlp.depth=1",
    "--config.training.steps=6",
    "--config.training.batch_size=8",
    "--config.training.checkpoint_every=3",
    "--config.training.log_every=2",
    "--config.training.sample_every=0",
    "--config.data.name=file",
    "--config.data.file.levels=4",
    "--quiet",
)
LIKELIHOOD = (
    "--n=2",
    "--quiet",
    "--config.likelihood.solver.name=ode",
    "--config.likelihood.solver.ode.method=midpoint",
    "--config.likelihood.solver.ode.steps=2",
    "--config.likelihood.audit=0",
    "--config.likelihood.dequantization=variational",
    "--config.likelihood.dequantizer.steps=1",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of integers with every file that a run may have, and an export of it."""
    root = tmp_path_factory.mktemp("integrity")
    np.save(root / "data.npy", np.random.default_rng(0).integers(0, 4, (60, 2)).astype("u1"))
    folder = root / "run"
    path = f"--config.data.file.path={root / 'data.npy'}"
    assert main(["train", "--config=two_moons", f"--workdir={folder}", path, *TINY]) == 0
    assert main(["likelihood", f"--workdir={folder}", *LIKELIHOOD]) == 0
    for class_ in (None, 1):
        save_choice(folder, Choice(4, UniPC(steps=4), 0.1, 0.2, DDIM(steps=4)), {"class": class_, "step": 6})
    run = load(folder)
    save_model(root / "export", run.config, run.model, step=6, moments=run.model.moments)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run; copying changes nothing."""
    return shutil.copytree(trained, tmp_path / "run")


def described(value):
    """Anything of plain values and tensors in a form that can be compared; NaN equals itself."""
    if isinstance(value, dict):
        return {key: described(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        value = np.asarray(value)
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Moments) or type(value) in (list, tuple):
        return [described(part) for part in value]
    return repr(value)


def resumed(folder) -> Trainer:
    """The training that would go on from the newest checkpoint."""
    config, _ = load_config(folder)
    data = build_data(config)
    options = TrainingOptions(**{**config["training"], "steps": 8})
    model = load(folder).model.requires_grad_(True)
    state = resume(folder, begin(model, DenoisingScoreMatching(), options, identity=load_identity(folder)))
    return Trainer(state, data, folder, options, hooks=STANDARD_HOOKS)


def what_is_read(folder: Path, name: str):
    """All that is read of the file of that name."""
    path = folder / name
    if path.suffix == ".pt":
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no other checkpoint is used instead
            found, state = load(folder), resumed(folder).state
        learned = {key: value for key, value in state.to_save().items() if key != "run"}
        return described([found.model.state_dict(), found.step, state.step, learned])
    if name == "config.json":
        return described([*load_config(folder), load_identity(folder)])
    if name == "model.safetensors":
        found = load(folder)
        return described([found.model.state_dict(), found.step])
    if name == "moments.safetensors":
        return described(load_moments(folder, load_config(folder)[1]))
    if name == "dequantizer.safetensors":
        return described([read_metadata(path), safetensors.torch.load_file(path)])
    if name == "tuned.json":
        return described([load_tuned(folder), load_tuned(folder, class_=1)])
    if name == "metrics.jsonl":  # its lines are read by what they are, and by when
        lines, damaged = read_metrics(path)
        if damaged:
            raise DamagedError(f"{path}: {damaged}")
        return [{key: part for key, part in line.items() if key in ("step", "loss", "gradient_norm")} for line in lines]
    return described(read_npz(path) if path.suffix == ".npz" else read_json(path))


FILES = (
    "checkpoints/000000006.pt",
    "config.json",
    "tuned.json",
    "moments.safetensors",
    "dequantizer.safetensors",
    "metrics.jsonl",
    "likelihood*.npz",
    "likelihood*.json",
    "model.safetensors",
)


# flipped bits


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_two_hundred_flipped_bits_are_each_refused_or_change_nothing(run, trained, name):
    folder = run if name != "model.safetensors" else Path(shutil.copytree(trained.parent / "export", run.parent / "export"))
    (path,) = folder.glob(name)
    name = str(path.relative_to(folder))
    expected, whole = what_is_read(folder, name), path.read_bytes()
    refused, draw = 0, random.Random(name)
    for _ in range(200):
        place = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = what_is_read(folder, name)
        except (ValueError, UserWarning) as error:
            assert path.name in str(error)  # noqa: PT017  (some flips change nothing)
            refused += 1
            continue
        assert found == expected, f"bit {place % 8} of byte {place // 8} of {len(whole)}"
    assert refused > 150


@pytest.mark.slow
def test_checkpoints_of_versions_without_digests_are_checked_by_their_crc(run):
    path = run / "checkpoints" / "000000006.pt"
    torch.save(torch.load(path, weights_only=True), path)
    expected, whole, draw, refused = what_is_read(run, "checkpoints/000000006.pt"), path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = what_is_read(run, "checkpoints/000000006.pt")
        except (ValueError, UserWarning) as error:
            assert path.name in str(error)  # noqa: PT017
            refused += 1
            continue
        assert found == expected
    assert refused > 30


def test_a_flipped_bit_in_a_weight_is_refused(run):
    """The case that was used in silence: the last byte of a weight."""
    (run / "checkpoints" / "000000003.pt").unlink()
    path = run / "checkpoints" / "000000006.pt"
    content = bytearray(path.read_bytes())
    weight = load(run).model.network.first.weight.numpy().tobytes()
    content[content.index(weight) + 3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"000000006.pt is damaged: its content is not that which was written"):
        load(run)
    with pytest.raises(ValueError, match=r"000000006.pt is damaged"):
        resumed(run)


def test_a_damaged_archive_of_data_is_refused(tmp_path):
    """numpy reads what a damaged header asks for, and then checks nothing: 3000 of 4000 samples were used in silence."""
    path = tmp_path / "data.npz"
    np.savez(path, a=np.random.default_rng(0).normal(size=(4000, 2)))
    assert load_array(str(path)).shape == (4000, 2)
    path.write_bytes(path.read_bytes().replace(b"(4000, 2)", b"(3000, 2)"))
    with np.load(path) as damaged:
        assert damaged["a"].shape == (3000, 2)
    with pytest.raises(DataError, match=r"data.npz is damaged: the CRC of its entry a.npy is wrong"):
        load_array(str(path))


# runs of before


def old_form(folder: Path) -> None:
    """Write the files of a run again as the version before did: without digests and identity."""
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in state.items() if key != "run"}, path)
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            words = {key: word for key, word in file.metadata().items() if key != "sha256"}
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, words)
    for name in ("config.json", "tuned.json"):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: part for key, part in value.items() if key not in ("sha256", "run")}))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [json.dumps({key: part for key, part in line.items() if key != "check"}) + "\n" for line in lines]
    (folder / "metrics.jsonl").write_text("".join(kept))


def test_a_run_of_a_version_without_digests_gives_the_same(run, trained, tmp_path, capsys):
    old_form(run)
    names = ("checkpoints/000000006.pt", "tuned.json", "moments.safetensors", "dequantizer.safetensors", "metrics.jsonl")
    for name in names:
        assert what_is_read(run, name) == what_is_read(trained, name), name
    new = shutil.copytree(trained, tmp_path / "new")
    for folder in (run, new):
        assert main(["train", f"--workdir={folder}", "--quiet", "--config.training.steps=8"]) == 0
    assert described(load(run).model.state_dict()) == described(load(new).model.state_dict())
    assert load_identity(run)
    assert "sha256" in json.loads((run / "config.json").read_text())


# faults of the system


class Faults:
    """Lets the call of a given ``number`` fail, of all the calls by which this process writes below ``folder``."""

    def __init__(self, monkeypatch, folder: Path, number: int, code: int):
        self.folder, self.number, self.code, self.calls = str(folder), number, code, 0
        for name in ("open", "replace", "rename", "mkdir", "chmod", "unlink"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        fsync, opened = os.fsync, io.open
        monkeypatch.setattr(os, "fsync", lambda handle: (self.count(), fsync(handle))[1])

        def open_(file, mode="r", *args, **how):
            if (not isinstance(file, int) and not self.concerns(file)) or not set("wa+x") & set(mode):
                return opened(file, mode, *args, **how)
            assert "b" in mode
            return io.BufferedWriter(_FailingFile(self, file, mode.replace("b", "")), 4096)

        monkeypatch.setattr(io, "open", open_)
        monkeypatch.setattr(builtins, "open", open_)

    def concerns(self, path) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(self.folder)

    def count(self, path=None) -> None:
        self.calls += 1
        if self.calls == self.number:
            raise OSError(self.code, os.strerror(self.code), path)

    def _failing(self, original):
        def call(path, *args, **how):
            if self.concerns(path):
                self.count(os.fspath(path))
            return original(path, *args, **how)

        return call


class _FailingFile(io.FileIO):
    def __init__(self, faults, file, mode):
        self.faults = faults
        super().__init__(file, mode)

    def write(self, content):
        self.faults.count()
        return super().write(content)


def without_seconds(folder) -> list[dict]:
    return [{**line, "seconds": None} for line in read_metrics(folder / "metrics.jsonl")[0]]


def after_each_fault(monkeypatch, capsys, folder, work: Path, command):
    """Run ``command`` on copies of ``folder`` until no call is left that could fail; yield what is left when it is repeated."""
    number = 0
    while True:
        number += 1
        copied = shutil.copytree(folder, work / str(number))
        arguments = [part.replace("FOLDER", str(copied)) for part in command]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            faults = Faults(patch, copied, number, errno.ENOSPC if number % 2 else errno.EIO)
            code = main(arguments)
        if faults.calls < number:
            assert code == 0
            return
        message = capsys.readouterr().err
        if code:  # a fault in what does not matter, such as who holds the lock, may go unnoticed
            assert code == 2, message
            assert message.count("\n") == 1, message
            assert str(copied) in message, message
        assert not [path for path in copied.rglob(".*") if path.is_file()], number
        load(copied)
        assert main(arguments) == 0
        yield copied, code
        shutil.rmtree(copied)


@pytest.mark.slow
def test_each_fault_while_training_is_a_sentence_and_loses_nothing(monkeypatch, capsys, run, tmp_path):
    (run / "checkpoints" / "000000006.pt").unlink()
    (run / "moments.safetensors").unlink()
    command = ["train", "--workdir=FOLDER", "--quiet"]
    whole = shutil.copytree(run, tmp_path / "whole")
    assert main([part.replace("FOLDER", str(whole)) for part in command]) == 0
    expected = described(load(whole).model.state_dict()), without_seconds(whole)
    codes = []
    for folder, code in after_each_fault(monkeypatch, capsys, run, tmp_path / "work", command):
        assert (described(load(folder).model.state_dict()), without_seconds(folder)) == expected
        codes.append(code)
    assert codes.count(2) > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "made"),
    [
        (("sample", "--workdir=FOLDER", "--quiet", "--n=2", "--nfe=2"), "samples/*.png"),
        (("likelihood", "--workdir=FOLDER", *LIKELIHOOD), "likelihood_*.json"),
    ],
    ids=["sample", "likelihood"],
)
def test_each_fault_of_other_commands_is_a_sentence_and_loses_nothing(monkeypatch, capsys, run, tmp_path, command, made):
    for path in run.glob("likelihood_*"):
        path.unlink()
    (run / "dequantizer.safetensors").unlink()
    codes = []
    for folder, code in after_each_fault(monkeypatch, capsys, run, tmp_path / "work", command):
        assert len(list(folder.glob(made))) == 1
        codes.append(code)
    assert codes.count(2) > 6


def test_what_may_not_be_read_is_not_called_damaged(monkeypatch, run, capsys):
    newest, opened = run / "checkpoints" / "000000006.pt", builtins.open

    def refusing(file, *args, **how):
        if str(file) == str(newest):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *args, **how)

    monkeypatch.setattr(builtins, "open", refusing)
    for command in ("sample", "train"):
        capsys.readouterr()
        assert main([command, f"--workdir={run}", "--quiet"]) == 2
        assert capsys.readouterr().err == f"score-sde: {newest} cannot be read: Permission denied\n"
    assert newest.exists()


# doubled and killed processes


@pytest.mark.slow
def test_of_two_trainings_at_once_one_is_refused_and_the_other_is_as_if_alone(trained, tmp_path):
    config, _ = load_config(trained)
    command = [sys.executable, "-m", "score_sde", "train", "--config=two_moons"]
    command += [option for option in TINY if "steps" not in option and "every" not in option]
    command += [f"--config.data.file.path={config['data']['file']['path']}", "--config.training.steps=1500"]
    command += ["--config.training.sample_every=0"]
    for name, count in (("alone", 1), ("two", 2)):
        started = [*command, f"--workdir={tmp_path / name}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(started, **pipes) for _ in range(count)]
        ends = [(process.communicate(timeout=200)[1], process.returncode) for process in processes]
        codes = sorted(code for _, code in ends)
        assert codes == [0, 2][:count], ends
    (message,) = [said for said, code in ends if code == 2]
    numbers = [process.pid for process in processes if process.returncode == 0]
    assert f"is being trained by process {numbers[0]} on " in message
    assert message.count("\n") == 1
    alone, two = tmp_path / "alone", tmp_path / "two"
    assert described(load(alone).model.state_dict()) == described(load(two).model.state_dict())
    assert without_seconds(alone) == without_seconds(two)


def test_training_under_torchrun_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", f"--workdir={run}", "--quiet", "--config.training.steps=8"]) == 2
    assert "score-sde train works in one process: start it without torchrun" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_training_that_another_one_overtook_is_refused(run):
    late = resumed(run)
    resumed(run).train(progress=False)
    with pytest.raises(RuntimeError, match="another training wrote to"):
        late.train(progress=False)


def test_pictures_and_lines_that_are_missing_come_back(run, capsys):
    command = ["train", f"--workdir={run}", "--quiet", "--config.training.steps=8", "--config.training.sample_every=2"]
    assert main(command) == 0
    picture, metrics = run / "samples" / "step_000000008.png", run / "metrics.jsonl"
    drawn, lines = picture.read_bytes(), metrics.read_text().splitlines(keepends=True)
    picture.unlink()
    metrics.write_text(lines[0] + '{"step": 3, "lo\0\n' + "".join(lines[1:]))
    capsys.readouterr()
    assert main(command[:3]) == 0
    assert picture.read_bytes() == drawn
    assert metrics.read_text() == "".join(lines)
    assert f"warning: {metrics} is damaged in line 2: " in capsys.readouterr().err


# files with nonsense in them


def test_an_edited_config_is_taken_by_a_named_option(run, capsys):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"steps": 6', '"steps": 7'))
    for command in ("sample", "train"):
        capsys.readouterr()
        assert main([command, f"--workdir={run}", "--quiet"]) == 2
        said = capsys.readouterr().err
        assert f"{path} is not as it was written: it is damaged, or was edited by hand" in said
        assert "; --accept_edited_config takes it as it is" in said
    with pytest.raises(ValueError, match="edited"):
        load(run)
    assert load(run, accept_edited_config=True).step == 6
    assert main(["train", f"--workdir={run}", "--quiet", "--accept_edited_config"]) == 0
    assert load(run).step == 7  # its digest is that of the edited one now


def test_a_checkpoint_of_another_run_is_refused(trained, run, tmp_path):
    other = tmp_path / "other"
    path = f"--config.data.file.path={trained.parent / 'data.npy'}"
    assert main(["train", "--config=two_moons", f"--workdir={other}", path, *TINY]) == 0
    shutil.copy(other / "checkpoints" / "000000006.pt", run / "checkpoints" / "000000006.pt")
    for read in (load, resumed):
        with pytest.raises(ValueError, match=r"000000006.pt is a checkpoint of another run"):
            read(run)


NONSENSE = ("x", None, 2.5, -1, True, [], {}, math.nan, math.inf, 10**30, [1, "a"], 0)


def leaves(value, path=()):
    """The places of all values in a nest of dicts and lists."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from leaves(part, (*path, key))


def changed(value, path, other):
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other
    return value


def refused_or_same(read, name: str, expected, what) -> bool:
    """Whether ``read`` refuses a file by its name; else it must give what it gave before."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read()
    except ValueError as error:
        assert name in str(error), (what, error)  # noqa: PT017
        return True
    assert found == expected, what
    return False


@pytest.mark.slow
def test_nonsense_in_a_checkpoint_is_refused_by_name(run):
    old_form(run)
    (run / "checkpoints" / "000000003.pt").unlink()
    name = "checkpoints/000000006.pt"
    state, expected = torch.load(run / name, weights_only=True), what_is_read(run, name)
    refused = 0
    for path in list(leaves(state))[::2]:
        place = state
        for key in path:
            place = place[key]
        others = [*NONSENSE, torch.full((2, 2), math.nan)]
        if isinstance(place, torch.Tensor):
            others = [None, 2.5, "x", place[None], place.to(torch.complex64), place.to(torch.int64), place * math.nan]
        for other in random.Random(str(path)).sample(others, 2):
            if path == ("seconds",) and other in (2.5, 0, 10**30):
                continue  # it may have taken so long
            torch.save(changed(state, path, other), run / name)
            what = path, other
            refused += refused_or_same(lambda: what_is_read(run, name), "000000006.pt", expected, what)
    assert refused > 60


@pytest.mark.parametrize(
    ("field", "value"), [("step", 1000000), ("step", "6"), ("seconds", math.nan), ("ema_updates", -1), ("pending", [1.0])]
)
def test_a_checkpoint_with_a_field_that_cannot_be_is_refused(run, field, value):
    path = run / "checkpoints" / "000000006.pt"
    torch.save({**torch.load(path, weights_only=True), field: value}, path)
    with pytest.raises(ValueError, match=rf"000000006.pt .*{field}"):
        resumed(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tuned.json"])
def test_nonsense_in_json_is_refused_by_name(run, name):
    """A value of the right type and range is another config, which no check can tell: such are not tried."""
    old_form(run)
    value = json.loads((run / name).read_text())
    if name == "config.json":  # what was not chosen is not read
        for section in value["config"].values():
            if isinstance(section, dict) and "name" in section:
                for key in [key for key, part in section.items() if isinstance(part, dict) and key != section["name"]]:
                    del section[key]
        for section in ("training", "likelihood", "solver"):
            del value["config"][section]
    (run / name).write_text(json.dumps(value))
    latent = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))

    def read():
        if name == "tuned.json":
            return what_is_read(run, name)
        model = load(run).model
        return described([model(latent, torch.tensor([0.1, 0.9])), model.data.decode(latent)])

    expected, refused = read(), 0
    for path in leaves(value):
        place = value
        for key in path:
            place = place[key]
        for other in random.Random(str(path)).sample(NONSENSE, 5):
            sort = bool if isinstance(place, bool) else (int, float) if isinstance(place, int | float) else type(place)
            if isinstance(other, sort) and (sort is bool or not isinstance(other, bool)) and other == other:
                continue
            if other is None and path == ("data_spec", "levels"):
                continue  # continuous data
            (run / name).write_text(json.dumps(changed(value, path, other)))
            refused += refused_or_same(read, name, expected, (path, other))
    assert refused > 40


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sde",), None),
        (("sde", "vp"), 3),
        (("sde", "vp", "beta_max"), True),
        (("sde", "vp", "beta_max"), math.nan),
        (("model",), []),
        (("training", "batch_size"), True),
        (("training", "steps"), 10**30),
        (("network", "mlp", "width"), None),
        (("data", "file", "model_range"), [0, "a"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_every_command(run, capsys, place, value):
    old_form(run)
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(changed(saved, ("config", *place), value)))
    for command in ("train", "sample", "likelihood"):
        capsys.readouterr()
        assert main([command, f"--workdir={run}", "--quiet"]) == 2
        assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"levels": 2.5}, {"levels": True}, {"levels": 10**30}, {"shape": (2.0,)}, {"shape": (10**30,)}]
)
def test_a_description_of_data_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataSpec(**{"shape": (2,), "levels": 4, **wrong})


@pytest.mark.parametrize("change", ["nan", "shape", "negative", "missing"])
def test_moments_that_cannot_be_are_refused(run, change):
    path = run / "moments.safetensors"
    tensors = safetensors.torch.load_file(path)
    if change == "nan":
        tensors["mean"][0] = math.nan
    if change == "shape":
        tensors["mean"] = tensors["mean"][None]
    if change == "negative":
        tensors["covariance"][0, 0] = -1
    if change == "missing":
        del tensors["covariance"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"moments.safetensors is damaged"):
        load(run)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_a_sentence(run, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(DDIM, "step", fail)
    with contextlib.suppress(SystemExit):
        assert main(["sample", f"--workdir={run}", "--quiet", "--solver=ddim"]) == 2
    assert capsys.readouterr().err.startswith("score-sde: out of memory; use a smaller --batch_size")
