"""Records that were saved are read again, and what is not what was saved is refused."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from score_sde import VPSDE, DataSpec, ProbabilityFlow, bits_per_dim
from score_sde.files import DamagedError, write_json
from score_sde.likelihood import BitsPerDim, VariationalBound, continuous_bound, discrete_bound
from tests.oracles import mixture

SPEC = DataSpec((2,), levels=16)
CHEAP = ProbabilityFlow(method="midpoint", steps=4, grid="log_snr")
BEFORE = Path(__file__).parents[1] / "data/runs/two_moons"


def record(**options):
    score = mixture().score(VPSDE())
    values = SPEC.quantized(mixture().sample(5, seed=1) / 4)
    return bits_per_dim(score, values, **{"data": SPEC, "solver": CHEAP, **options})


def bound(make, **options):
    values = SPEC.quantized(mixture().sample(5, seed=1) / 4)
    return make(mixture().score(VPSDE()), values, data=SPEC, **options)


RECORDS = {
    "integers": lambda: record(name="a mixture"),
    "several probes": lambda: record(probes=3, audit=0),
    "with errors of the solver": lambda: record(solver=None, divergence="exact"),
    "continuous": lambda: bits_per_dim(mixture().score(VPSDE()), mixture().sample(5), data=DataSpec((2,)), solver=CHEAP),
    "a chain": lambda: bound(discrete_bound, steps=5),
    "continuous time": lambda: bound(continuous_bound, times=3, draws=2),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_saved_record_is_read_as_it_was(tmp_path, name):
    saved = RECORDS[name]()
    saved.save(tmp_path / "a.json", {"step": 3})
    assert json.loads((tmp_path / "a.json").read_text())["format"] == 1
    assert type(saved).load(tmp_path / "a.json") == saved


def test_a_single_sample_still_has_no_standard_error(tmp_path):
    saved = bits_per_dim(mixture().score(VPSDE()), mixture().sample(1), data=DataSpec((2,)), solver=CHEAP)
    saved.save(tmp_path / "one.json")
    read = BitsPerDim.load(tmp_path / "one.json")
    assert math.isnan(read.stderr)
    assert dataclasses.replace(read, stderr=0.0) == dataclasses.replace(saved, stderr=0.0)


def test_a_record_of_before_formats_is_read(tmp_path):
    (path,) = BEFORE.glob("likelihood_*.json")
    assert "format" not in json.loads(path.read_text())
    read = BitsPerDim.load(path)
    assert len(read.per_sample) == read.samples == 4
    assert read.sentence() == json.loads(path.read_text())["sentence"]


def test_a_record_moves_with_its_values(tmp_path):
    (path,) = BEFORE.glob("likelihood_*.json")
    for ending in (".json", ".npz"):
        shutil.copy(path.with_suffix(ending), tmp_path / f"b{ending}")
    assert BitsPerDim.load(tmp_path / "b.json") == BitsPerDim.load(path)


def test_what_was_not_saved_like_this_is_refused(tmp_path):
    saved = record()
    saved.save(tmp_path / "a.json")
    entries = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**entries, "mean": entries["mean"] - 1}))
    with pytest.raises(DamagedError, match="is damaged, or was edited by hand"):
        BitsPerDim.load(tmp_path / "a.json")
    del entries["sha256"]
    write_json(tmp_path / "a.json", {**entries, "format": 2})
    with pytest.raises(ValueError, match="the format 2, of a later version"):
        BitsPerDim.load(tmp_path / "a.json")
    write_json(tmp_path / "a.json", entries)
    with pytest.raises(ValueError, match="is no record of a VariationalBound: it lacks prior"):
        VariationalBound.load(tmp_path / "a.json")
    assert BitsPerDim.load(tmp_path / "a.json") == saved


@pytest.mark.parametrize("changed", ["one value", "one sample less"])
def test_values_of_another_record_are_refused(tmp_path, changed):
    saved, other = record(), record(seed=1)
    saved.save(tmp_path / "a.json")
    if changed == "one sample less":
        mean = torch.tensor(saved.per_sample[1:], dtype=torch.float64).mean().item()
        other = dataclasses.replace(saved, per_sample=saved.per_sample[1:], samples=4, mean=mean)
    other.save(tmp_path / "b.json")
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    with pytest.raises(DamagedError, match="does not hold the values of the samples of"):
        BitsPerDim.load(tmp_path / "a.json")
