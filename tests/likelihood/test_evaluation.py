"""Every sample once: across batches, interruptions and processes."""

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from score_sde import VPSDE, DataSpec, ProbabilityFlow, ScoreModel, SolverError, bits_per_dim
from score_sde.divergence import GivenProbes
from score_sde.likelihood import DEQUANTIZATIONS, DualWeighted, continuous_bound
from score_sde.likelihood.evaluation import DataSet, Estimator, fingerprint, weights_digest
from score_sde.networks import MLP
from score_sde.score import ClassScore
from tests.oracles import mixture

SPEC = DataSpec((2,), levels=16)
SOLVER = ProbabilityFlow(method="midpoint", steps=3, grid="log_snr")
HOW = {"data": SPEC, "solver": SOLVER, "batch_size": 4}
CALLS = 6
"""Evaluations of a batch."""


class Interrupted:
    """A score that is interrupted at its evaluation number ``stop``, and counts."""

    def __init__(self, inner, stop=float("inf")):
        self.inner, self.stop, self.calls = inner, stop, 0
        self.sde, self.dtype = inner.sde, inner.dtype

    def __call__(self, x, t, cond=None):
        self.calls += 1
        if self.calls > self.stop:
            raise KeyboardInterrupt
        return self.inner(x, t, cond)


def score_and_values(count=11):
    return mixture().score(VPSDE()), torch.randint(16, (count, 2), generator=torch.Generator().manual_seed(0))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    """Interrupted within the third of three batches: the second call computes that one alone, and removes what was kept."""
    score, values = score_and_values()
    keep, how = tmp_path / "kept", {**HOW, "audit": 0, "identity": "the mixture"}  # Interrupted has a count that changes
    whole = bits_per_dim(score, values, **how)
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(Interrupted(score, stop=2 * CALLS + 3), values, keep=keep, **how)
    assert sorted(file.name for file in keep.glob("*.npz")) == ["000000000.npz", "000000004.npz"]
    again = Interrupted(score)
    resumed = bits_per_dim(again, values, keep=keep, **how)
    assert again.calls == CALLS
    assert resumed.per_sample == whole.per_sample
    assert resumed.nfe == whole.nfe == CALLS
    assert not keep.exists()


OTHERS = {
    "seed": {"seed": 1},
    "values": {"values": score_and_values(8)[1].flip(0)},
    "solver": {"solver": ProbabilityFlow(method="midpoint", steps=3, grid="quadratic")},
    "divergence": {"divergence": "hutchinson"},
    "batch_size": {"batch_size": 5},
    "importance_samples": {"importance_samples": 2},
    "truncation": {"truncation": True},
    "dequantization": {"dequantization": "truncated_normal"},
    "cond": {"cond": torch.zeros(8, dtype=torch.long)},
}


@pytest.mark.parametrize("changed", OTHERS)
def test_what_was_kept_of_another_protocol_is_not_used(tmp_path, changed):
    score, values = score_and_values(8)
    keep = tmp_path / "kept"
    how = {**HOW, "audit": 0, "divergence": "exact", "identity": "the mixture"}  # Interrupted has a count that changes
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(Interrupted(score, stop=CALLS + 1), values, keep=keep, **how)
    how |= OTHERS[changed]
    values = how.pop("values", values)
    again = Interrupted(score)
    resumed = bits_per_dim(again, values, keep=keep, **how)
    assert again.calls == 2 * (CALLS + how.get("truncation", False)) * how.get("importance_samples", 1)
    assert resumed.per_sample == bits_per_dim(score, values, **how).per_sample


def test_what_was_kept_of_other_weights_is_not_used(tmp_path):
    model, calls = ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), SPEC), []
    values, how = score_and_values(8)[1], {"solver": SOLVER, "batch_size": 4, "audit": 0, "keep": tmp_path / "kept"}
    how["identity"] = "the hook changes nothing"

    def stop(*_):
        calls.append(1)
        if len(calls) > CALLS:
            raise KeyboardInterrupt

    hook, digest = model.network.register_forward_pre_hook(stop), weights_digest(model)
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(model, values, **how)
    hook.remove()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    resumed = bits_per_dim(model, values, **how)
    assert resumed.weights == weights_digest(model) != digest
    assert resumed.per_sample == bits_per_dim(model, values, **how).per_sample


def test_a_damaged_protocol_starts_over(tmp_path):
    score, values = score_and_values(8)
    keep, how = tmp_path / "kept", {**HOW, "audit": 0, "identity": "the mixture"}
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(Interrupted(score, stop=CALLS + 1), values, keep=keep, **how)
    (keep / "protocol.json").write_text("{ broken")
    again = Interrupted(score)
    bits_per_dim(again, values, keep=keep, **how)
    assert again.calls == 2 * CALLS


def test_the_protocol_of_a_kept_folder_can_be_read(tmp_path):
    score, values = score_and_values()
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(Interrupted(score, stop=CALLS + 1), values, keep=tmp_path / "kept", **HOW)
    protocol = json.loads((tmp_path / "kept" / "protocol.json").read_text())
    assert protocol["dequantization"].startswith("uniform ")
    assert protocol["score"].startswith("Interrupted ")
    assert protocol["seeds"] == "0 0"
    assert "VPSDE" in protocol["sde"]


@pytest.mark.slow
def test_an_interruption_among_added_probes_goes_on_there(tmp_path):
    """All passes over the data are kept until the end, not the first alone."""
    model = ScoreModel(MLP((6,), width=16, depth=2), VPSDE(), DataSpec((6,), levels=16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    values = torch.randint(16, (12, 6), generator=torch.Generator().manual_seed(0))
    how, calls = {"batch_size": 4, "audit": 4, "keep": tmp_path / "kept", "probes": 1}, []
    how["identity"] = "the hook changes nothing"
    target = 0.7 * bits_per_dim(model, values, **{**how, "audit": 12}).stderr_probe
    hook = model.network.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = bits_per_dim(model, values, target_error=target, **how)
    hook.remove()
    assert whole.divergence.startswith(("4 ", "5 ", "6 "))
    spent = len(calls)

    def stop(*_):
        calls.append(1)
        if len(calls) == 2 * spent - 3:
            raise KeyboardInterrupt

    hook = model.network.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(model, values, target_error=target, **how)
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 3
    assert len(list((tmp_path / "kept").glob("*/*.npz"))) == 2
    before = len(calls)
    resumed = bits_per_dim(model, values, target_error=target, **how)
    hook.remove()
    assert resumed.per_sample == whole.per_sample
    assert len(calls) - before < spent
    assert not (tmp_path / "kept").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    score, values = score_and_values(8)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        bits_per_dim(score, values, keep=tmp_path, **HOW)
    keep = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(Interrupted(score, stop=CALLS + 1), values, keep=keep, **HOW)
    (keep / "mine.txt").write_text("note")
    (keep / ".000000004.npz.half").write_text("left by a process that was killed")
    bits_per_dim(score, values, keep=keep, **HOW)
    assert [file.name for file in keep.iterdir()] == ["mine.txt"]
    assert (tmp_path / "thesis.tex").is_file()


def test_a_process_that_was_killed_at_its_first_write_does_not_stand_in_the_way(tmp_path):
    score, values = score_and_values(8)
    keep = tmp_path / "kept"
    keep.mkdir()
    (keep / ".protocol.json.half").write_text("{")
    bits_per_dim(score, values, keep=keep, **HOW)
    assert not keep.exists()


def test_a_protocol_tells_all_parts_of_an_estimator_apart():
    data, network = DataSet(torch.zeros(2, 2), batch_size=4), MLP((2,), width=8, depth=1)
    estimator = Estimator(
        model=mixture().score(VPSDE()),
        data=SPEC,
        dequantization=DEQUANTIZATIONS["uniform"],
        importance_samples=1,
        truncation=False,
        divergence=GivenProbes(torch.ones(1, 2, 2)),
        solver=SOLVER,
        seed=0,
        probe_seed=0,
    )
    others = [
        {"model": mixture(seed=1).score(VPSDE())},
        {"model": mixture(dtype=torch.float32).score(VPSDE())},
        {"model": ScoreModel(network, VPSDE(), SPEC)},
        {"model": ScoreModel(network, VPSDE(), SPEC, parameterization="v")},
        {"model": ClassScore(mixture().score(VPSDE()), 0)},
        {"model": ClassScore(mixture().score(VPSDE()), 1)},
        {"data": DataSpec((2,), levels=17)},
        {"dequantization": None},
        {"dequantization": DEQUANTIZATIONS["truncated_normal"]},
        {"importance_samples": 2},
        {"truncation": True},
        {"divergence": GivenProbes(-torch.ones(1, 2, 2))},
        {"solver": dataclasses.replace(SOLVER, steps=4)},
        {"seed": 1},
        {"probe_seed": 1},
    ]
    assert {name for other in others for name in other} == {field.name for field in dataclasses.fields(Estimator)}
    changed = [estimator, *(dataclasses.replace(estimator, **other) for other in others)]
    places = torch.arange(2)
    protocols = [json.dumps(fingerprint(one, data, places)) for one in changed]
    assert len(set(protocols)) == len(protocols)
    same = dataclasses.replace(estimator, model=mixture().score(VPSDE()))
    assert json.dumps(fingerprint(same, data, places)) == protocols[0]


def _one_of(rank, ranks, folder, count):
    store = torch.distributed.FileStore(f"{folder}/store{ranks}", ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    score, values = score_and_values(count)
    record = bits_per_dim(score, values, keep=f"{folder}/kept{ranks}", **HOW)
    torch.save((record.per_sample, record.sentence()), f"{folder}/{ranks}_{rank}.pt")
    torch.distributed.destroy_process_group()


class Brittle:
    """A solver that cannot solve large values; with ``finely`` it can, but not more finely."""

    def __init__(self, inner, *, finely):
        self.inner, self.finely = inner, finely

    def transport(self, flow, x, t_from, t_to, *, observe=None):
        if x.mean() > 0.5 and not self.finely:
            raise SolverError("too large")
        return self.inner.transport(flow, x, t_from, t_to, observe=observe)

    def finer(self):
        return Brittle(self.inner.finer(), finely=False)

    def with_steps(self, steps):
        return Brittle(self.inner.with_steps(steps), finely=self.finely)

    def describe(self):
        return "brittle"


def brittle(finely, **options):
    """bits/dim of four small values and, the second process's, of four large ones."""
    values = torch.tensor([[1, 2]] * 4 + [[15, 14]] * 4)
    solver = Brittle(DualWeighted(steps=8, doublings=0), finely=finely)
    return bits_per_dim(mixture().score(VPSDE()), values, data=SPEC, batch_size=4, solver=solver, **options)


def _fails_alike(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    said = []
    for keep in (None, folder):  # which holds other files
        with pytest.raises((SolverError, ValueError)) as failed:
            brittle(False, keep=keep)
        said.append(f"{type(failed.value).__name__}: {failed.value}")
    Path(folder, f"{rank}.json").write_text(json.dumps([*said, brittle(True).sentence()]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_what_one_process_cannot_do_stops_all_with_the_same_words(tmp_path):
    """The other one waits for no answer that never comes; an audit that fails in one process goes on in both."""
    started = torch.multiprocessing.spawn(_fails_alike, args=(str(tmp_path),), nprocs=2, join=False)
    assert started.join(timeout=180) or started.join(timeout=180)  # false as long as one of them runs
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    unsolved, foreign, sentence = said[0]
    assert unsolved == "SolverError: samples 4 to 7, counted from 0: too large"
    assert "holds other files" in foreign
    assert sentence == brittle(True).sentence()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "count"), [(2, 11), (3, 6)], ids=["two", "more than batches"])
def test_several_processes_find_what_one_does(tmp_path, ranks, count):
    """Each of them returns the whole record, the audit included, though it solved a part of the data only."""
    torch.multiprocessing.spawn(_one_of, args=(ranks, str(tmp_path), count), nprocs=ranks)
    score, values = score_and_values(count)
    expected = bits_per_dim(score, values, **HOW)
    for rank in range(ranks):
        per_sample, sentence = torch.load(tmp_path / f"{ranks}_{rank}.pt", weights_only=True)
        assert per_sample == expected.per_sample
        assert sentence == expected.sentence()
    assert not (tmp_path / f"kept{ranks}").exists()


class TwoConditions(torch.nn.Module):
    """A network of two conditions, told by their names, or of their sum, told as one."""

    def forward(self, x, noise, cond):
        return 0.3 * x + (cond["shift"] + cond["more"] if isinstance(cond, dict) else cond)


def test_conditions_by_their_names_stay_with_their_samples(tmp_path):
    model, values = ScoreModel(TwoConditions(), VPSDE(), SPEC), score_and_values()[1]
    named = {"shift": torch.randn(11, 2), "more": torch.randn(11, 2)}
    one = named["shift"] + named["more"]
    found = [bits_per_dim(model, values, cond=cond, **HOW, keep=tmp_path / "kept").per_sample for cond in (named, one)]
    assert found[0] == found[1]
    bounds = [continuous_bound(model, values, cond=cond, times=3, batch_size=4).per_sample for cond in (named, one)]
    assert bounds[0] == bounds[1]
    with pytest.raises(ValueError, match="one condition for each of 11 samples"):
        bits_per_dim(model, values, cond={**named, "more": torch.zeros(2, 2)}, **HOW)
    estimator = Estimator(model, SPEC, DEQUANTIZATIONS["uniform"], 1, False, GivenProbes(torch.ones(1, 2, 2)), SOLVER, 0, 0)
    others = [named, {**named, "more": named["shift"]}, {"shift": named["more"], "more": named["shift"]}, one, None]
    protocols = {fingerprint(estimator, DataSet(values, cond), torch.arange(11))["data"] for cond in others}
    assert len(protocols) == len(others)
