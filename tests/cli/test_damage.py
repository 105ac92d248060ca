"""Runs that are damaged, of another program, or edited by hand."""

import io
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from score_sde.cli import main
from tests.cli.conftest import latest, refused, samples, written

# damaged runs


def everything_refused(capsys, folder) -> str:
    """What sample says of a run that cannot be loaded; likelihood and compare refuse it too."""
    for command in ("likelihood", "compare"):
        refused(capsys, command, f"--workdir={folder}")
    return refused(capsys, "sample", f"--workdir={folder}")


def test_a_run_without_checkpoint(capsys, moons):
    shutil.rmtree(moons / "checkpoints")
    message = everything_refused(capsys, moons)
    assert f"{moons} has no checkpoint yet: train it with score-sde train --workdir={moons}" in message
    (moons / "checkpoints").mkdir()
    assert "has no checkpoint yet" in everything_refused(capsys, moons)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint(capsys, moons, kept):
    whole = latest(moons).read_bytes()
    latest(moons).write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    min((moons / "checkpoints").glob("*.pt")).unlink()
    message = everything_refused(capsys, moons)
    assert f"{latest(moons)} is damaged" in message
    assert "remove" not in message
    assert "damaged" in refused(capsys, "train", f"--workdir={moons}", "--quiet")


def test_where_the_newest_checkpoint_is_damaged_the_one_before_it_is_used(capsys, moons):
    sound, whole, path = (moons / "checkpoints" / "000000003.pt"), latest(moons).read_bytes(), latest(moons)
    metrics = (moons / "metrics.jsonl").read_text()
    path.write_bytes(whole[:1000] + b"\0" + whole[1001:])
    said = f"warning: {path} is damaged; {sound.name} is used instead"
    assert main(["sample", f"--workdir={moons}", "--quiet", "--n=4", "--nfe=2"]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert samples(written(captured.out, "values"))[1]["step"] == 3
    assert main(["train", f"--workdir={moons}", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert "from step 3 of 6" in captured.out
    again = torch.load(path, weights_only=True)
    assert all(torch.equal(value, again["ema"][key]) for key, value in torch.load(io.BytesIO(whole))["ema"].items())
    assert without_seconds((moons / "metrics.jsonl").read_text()) == without_seconds(metrics)
    assert path.with_suffix(".pt.damaged").read_bytes()[:1000] == whole[:1000]  # nothing is thrown away


def without_seconds(metrics: str) -> list[dict]:
    lines = [json.loads(line) for line in metrics.splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_checkpoint_of_another_program(capsys, moons):
    others = [[1, 2, 3], {"format": "another", "step": 3}, {"state_dict": {"a": torch.zeros(2)}}, torch.zeros(3)]
    for other in others:
        torch.save(other, latest(moons))
        assert f"{latest(moons)} is a file of another program or version" in everything_refused(capsys, moons)
    min((moons / "checkpoints").glob("*.pt")).unlink()
    latest(moons).write_text("this is not even a pickle")
    assert str(latest(moons)) in everything_refused(capsys, moons)
    with zipfile.ZipFile(latest(moons), "w") as archive:
        archive.writestr("readme.txt", "nor is this")
    assert str(latest(moons)) in everything_refused(capsys, moons)


class Payload:
    """Its pickle makes a directory when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(capsys, moons, tmp_path):
    made, sound = tmp_path / "made", torch.load(latest(moons), weights_only=True)

    def write_plain():
        latest(moons).write_bytes(pickle.dumps(Payload(made), protocol=2))

    for write in (
        write_plain,
        lambda: torch.save(Payload(made), latest(moons)),
        lambda: torch.save({**sound, "extra": Payload(made)}, latest(moons)),
        lambda: torch.save({**sound, "extra": Payload(made)}, latest(moons), _use_new_zipfile_serialization=False),
    ):
        write()
        assert "more than tensors and plain values" in everything_refused(capsys, moons)
        refused(capsys, "train", f"--workdir={moons}", "--quiet")
        assert not made.exists()
    torch.load(latest(moons), weights_only=False)  # the payload would have worked
    assert made.exists()


def test_a_checkpoint_of_another_model_or_with_parts_missing(capsys, moons, digits):
    sound = torch.load(latest(moons), weights_only=True)
    shutil.copy(latest(digits), latest(moons))
    assert "says that it is of step 2" in everything_refused(capsys, moons)
    other = torch.load(latest(digits), weights_only=True)
    torch.save({**other, "step": 6}, latest(moons))
    assert "is a checkpoint of another run" in everything_refused(capsys, moons)
    assert "is a checkpoint of another run" in refused(capsys, "train", f"--workdir={moons}", "--quiet")
    torch.save({**other, "step": 6, "run": None}, latest(moons))  # as an early version wrote it
    assert "does not fit the model of this run's config.json" in everything_refused(capsys, moons)
    torch.save({key: value for key, value in sound.items() if key != "ema"}, latest(moons))
    assert "lacks ema" in everything_refused(capsys, moons)
    torch.save({**sound, "ema": {**sound["ema"], "unknown": torch.zeros(1)}}, latest(moons))
    assert "does not fit" in everything_refused(capsys, moons)
    del sound["optimizer"]
    torch.save(sound, latest(moons))
    assert "optimizer" in refused(capsys, "train", f"--workdir={moons}", "--quiet")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "\0\udcff", id="binary"),
        pytest.param(lambda text: "[1, 2]", id="list"),
        pytest.param(lambda text: "{}", id="nothing inside"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "config": {}}), id="config empty"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "config": 3}), id="config a number"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {}}), id="data_spec empty"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {"shape": 3}}), id="shape a number"),
        pytest.param(lambda text: json.dumps({**json.loads(text), "data_spec": {"shape": []}}), id="shape empty"),
        pytest.param(lambda text: text.replace('"beta_max"', '"beta_mx"'), id="unknown key"),
        pytest.param(lambda text: text.replace('"depth": 4', '"depth": "four"'), id="wrong type"),
    ],
)
def test_a_damaged_config(capsys, moons, damage):
    path = moons / "config.json"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    everything_refused(capsys, moons)
    refused(capsys, "train", f"--workdir={moons}", "--quiet")


def test_damaged_moments(capsys, moons):
    path = moons / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    assert f"{path} is damaged: remove it" in everything_refused(capsys, moons)


@pytest.mark.parametrize("key", ["sde", "seed", "network"])
def test_config_json_with_nonsense_in_it_is_refused(capsys, moons, key):
    saved = json.loads((moons / "config.json").read_text())
    saved["config"][key] = "nonsense"
    (moons / "config.json").write_text(json.dumps(saved))
    assert "damaged" in refused(capsys, "sample", f"--workdir={moons}", "--quiet")
