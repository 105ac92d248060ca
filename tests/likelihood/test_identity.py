"""Kept work is used for the same score only, and only where it is whole."""

import array
import dataclasses
import functools
import io
import json
import operator
import random
import re
import textwrap
import types

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import VPSDE, DataSpec, Hutchinson, ScoreModel, bits_per_dim
from score_sde.likelihood.dequantization import truncated_normal, uniform
from score_sde.likelihood.identity import Unidentified, identify
from score_sde.likelihood.kept import Kept
from score_sde.networks import NETWORKS
from score_sde.score import ClassScore
from score_sde.sdes import SDE
from tests.likelihood.test_evaluation import CALLS, HOW, score_and_values
from tests.networks.test_networks import SMALL
from tests.oracles import SDE_CASES, mixture


class Guided:
    """A wrapper that is no dataclass: its guidance is a plain float."""

    def __init__(self, inner, scale):
        self.inner, self.scale, self.sde = inner, scale, inner.sde

    def __call__(self, x, t, cond=None):
        return self.scale * self.inner(x, t)


class Slotted:
    __slots__ = ("inner", "scale", "sde")
    __init__, __call__ = Guided.__init__, Guided.__call__


class Module(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale, self.sde = scale, VPSDE()
        self.linear = nn.Linear(2, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x, t, cond=None):
        return -self.scale * self.linear(x)


class Holder:
    def __init__(self, held):
        self.held = held


@dataclasses.dataclass
class Record:
    held: object


class LearnedSDE(SDE):
    """A schedule in a tensor, which no repr shows."""

    def __init__(self, rate):
        super().__init__()
        object.__setattr__(self, "rate", torch.tensor(rate))

    def alpha(self, t):
        return torch.exp(-self.rate * t)

    def sigma(self, t):
        return (1 - self.alpha(t) ** 2).sqrt()


def defined(code, **globals_):
    """What ``thing`` is in a module of this code."""
    module = types.ModuleType("user_module")
    vars(module).update(globals_)
    exec(textwrap.dedent(code), vars(module))
    return module.thing


def module(**globals_):
    """A module of the user's own that holds these."""
    made = types.ModuleType("settings")
    vars(made).update(globals_)
    return made


METHOD = """
class Thing:
    def __call__(self, x):
        return {} * x
thing = Thing()
"""

PAIRS = {
    "a float of a plain object": (Guided(mixture().score(VPSDE()), 1.0), Guided(mixture().score(VPSDE()), 0.5)),
    "a float in slots": (Slotted(mixture().score(VPSDE()), 1.0), Slotted(mixture().score(VPSDE()), 0.5)),
    "a float of a module": (Module(1.0), Module(0.5)),
    "a float of numpy": (Holder(np.float64(1)), Holder(np.float64(0.5))),
    "the type of a number": (Holder(1), Holder(1.0)),
    "an array": (Holder(np.ones(3)), Holder(np.ones(3, np.float32))),
    "a tensor in a list in a dict": (Holder({"a": [torch.ones(2)]}), Holder({"a": [torch.zeros(2)]})),
    "a score within a plain object": (Holder(Holder(mixture().score(VPSDE()))), Holder(Holder(mixture(seed=1).score(VPSDE())))),
    "a field": (Record(1.0), Record(0.5)),
    "the names of attributes": (types.SimpleNamespace(a=1.0), types.SimpleNamespace(b=1.0)),
    "where a number ends": (("ab", "c"), ("a", "bc")),
    "a tensor of an SDE": (LearnedSDE(1.0), LearnedSDE(0.5)),
    "a class": (ClassScore(mixture().score(VPSDE()), 0), ClassScore(mixture().score(VPSDE()), 1)),
    "probes": (Hutchinson(1), Hutchinson(2)),
    "a function": (uniform, truncated_normal),
    "a partial function": (functools.partial(uniform, spec=1), functools.partial(uniform, spec=2)),
    "the mode of a module": (nn.Dropout().train(), nn.Dropout().eval()),
    "code": (defined(METHOD.format(1.0)), defined(METHOD.format(0.5))),
    "a global in the code": (defined(METHOD.format("scale"), scale=1.0), defined(METHOD.format("scale"), scale=0.5)),
    "a global of another module": (
        defined(METHOD.format("settings.scale"), settings=module(scale=1.0)),
        defined(METHOD.format("settings.scale"), settings=module(scale=0.5)),
    ),
    "a pattern": (Holder(re.compile("a")), Holder(re.compile("b"))),
    "an attribute of the class": (
        defined("class Thing:\n    scale = 1.0\nthing = Thing()"),
        defined("class Thing:\n    scale = 0.5\nthing = Thing()"),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_told_apart(name):
    first, second = PAIRS[name]
    assert identify(first, "it") == identify(first, "it")
    assert identify(first, "it") != identify(second, "it")


@pytest.mark.parametrize(
    "build", [lambda: Guided(mixture().score(VPSDE()), 1.0), lambda: Module(1.0), lambda: Record((1, "a"))]
)
def test_what_is_alike_is_the_same(build):
    first, second = build(), build()
    assert first is not second
    assert identify(first, "it") == identify(second, "it")


def test_what_an_object_computes_from_the_rest_does_not_count():
    score = mixture().score(VPSDE())
    before = identify(score, "it")
    assert score.moments is not None
    assert identify(score, "it") == before


def _closure():
    scale = 1.0

    def inner(x):
        return scale * x

    return inner


UNKNOWN = {
    "a lambda": lambda x: x,
    "a closure": _closure(),
    "a method": Guided(mixture().score(VPSDE()), 1.0).__call__,
    "a generator": (i for i in range(3)),
    "an iterator": iter([1]),
    "a file": io.BytesIO(),
    "random numbers": random.Random(0),
    "random numbers of numpy": np.random.default_rng(0),
    "random numbers of torch": torch.Generator(),
    "an array of Python's": array.array("d", [1.0]),
    "an index of operator": operator.itemgetter(0),
    "an array with a mask": np.ma.array([1.0, 2.0], mask=[True, False]),
    "an array of objects": np.array([object()], dtype=object),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_identified_is_refused(name):
    for held in (UNKNOWN[name], Holder(UNKNOWN[name]), [Record(UNKNOWN[name])], {"a": UNKNOWN[name]}):
        with pytest.raises(Unidentified, match=r"cannot be identified, so finished batches .* give bits_per_dim an identity"):
            identify(held, "the score")


def test_a_hook_of_a_module_is_part_of_it():
    module = Module(1.0)
    module.linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(Unidentified, match=r"a hook of the score\.linear\[0\] is a lambda or local function"):
        identify(module, "the score")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_ours_is_identified(name):
    if name == "diffusers":
        pytest.importorskip("diffusers")
        blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
        settings = json.dumps({"block_out_channels": [8], "norm_num_groups": 2, **blocks})
        network = NETWORKS[name]((1, 8, 8), settings=settings)
    else:
        network = NETWORKS[name]((1, 16, 16), **SMALL[name])
    for sde in SDE_CASES.values():
        assert identify(ScoreModel(network, sde, DataSpec(network.event), time_input="sigma"), "the model")


def test_another_guidance_is_another_score(tmp_path, monkeypatch):
    """Interrupted at 1.0 and continued at 0.5, a mean of 5.05 was 2.61."""
    score, values = score_and_values(8)
    how = {**HOW, "audit": 0, "divergence": "exact", "keep": tmp_path / "kept"}
    first, calls = Guided(score, 1.0), []

    def counting(self, x, t):
        calls.append(1)
        if len(calls) == CALLS + 1:
            raise KeyboardInterrupt
        return scored(self, x, t)

    scored = type(score).__call__
    monkeypatch.setattr(type(score), "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(first, values, **how)
    assert (tmp_path / "kept" / "000000000.npz").is_file()
    found = bits_per_dim(Guided(score, 0.5), values, **how)
    assert len(calls) == 1 + 3 * CALLS
    assert found.per_sample == bits_per_dim(Guided(score, 0.5), values, **{**how, "keep": None}).per_sample


def test_a_lambda_needs_an_identity(tmp_path):
    score, values = score_and_values(4)
    held = Holder(lambda x, t: score(x, t))
    held.sde, held.score_parts = score.sde, ()
    Holder.__call__ = lambda self, x, t, cond=None: self.held(x, t)
    try:
        with pytest.raises(ValueError, match=r"the score\.held is a lambda or local function"):
            bits_per_dim(held, values, keep=tmp_path / "kept", **HOW)
        given = bits_per_dim(held, values, keep=tmp_path / "kept", identity="mixture", **HOW)
        assert given.per_sample == bits_per_dim(held, values, **HOW).per_sample  # which needs none
        how = {**HOW, "dequantization": lambda *a: uniform(*a)}
        with pytest.raises(ValueError, match="the dequantization is a lambda"):
            bits_per_dim(score, values, keep=tmp_path / "kept", **how)
    finally:
        del Holder.__call__


def kept(tmp_path, count=8):
    """Two finished batches of four, whose record was lost, and how to ask again."""
    score, values = score_and_values(count)
    how = {**HOW, "audit": 0, "keep": tmp_path / "kept", "identity": "mixture"}
    calls = []

    def stopping(x, t, cond=None):
        calls.append(1)
        if len(calls) > 2 * CALLS:
            raise KeyboardInterrupt
        return score(x, t, cond)

    stopping.sde, stopping.dtype, stopping.score_parts = score.sde, score.dtype, ()
    more = torch.cat([values, values[:1]])
    with pytest.raises(KeyboardInterrupt):
        bits_per_dim(stopping, more, **how)
    files = sorted((tmp_path / "kept").glob("*.npz"))
    assert len(files) == 2

    def again():
        calls.clear()
        counting = lambda x, t, cond=None: calls.append(1) or score(x, t, cond)
        counting.sde, counting.dtype, counting.score_parts = score.sde, score.dtype, ()
        found = bits_per_dim(counting, more, **how)
        return len(calls) // CALLS, found.per_sample

    return files, again, bits_per_dim(score, more, **{**how, "keep": None}).per_sample


def changed(**arrays):
    return lambda content: _npz({**dict(np.load(io.BytesIO(content))), **arrays})


def _npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


DAMAGE = {
    "nothing": (lambda content: content, 1),
    "cut": (lambda content: content[: len(content) // 2], 2),
    "empty": (lambda content: b"", 2),
    "no zip": (lambda content: b"x" * 400, 2),
    "half a batch": (lambda content: _npz({k: v[:2] for k, v in np.load(io.BytesIO(content)).items()}), 2),
    "NaN": (changed(bits=np.full(4, np.nan)), 2),
    "other numbers": (changed(bits=np.zeros(4)), 2),
    "another type": (changed(bits=np.zeros(4, np.float32)), 2),
    "a missing array": (lambda content: _npz({"bits": np.zeros(4)}), 2),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_batch_is_computed_again(tmp_path, name):
    """Half a batch gave 1.25 bits/dim for 1.22, NaN gave "nan +- nan"."""
    damage, batches = DAMAGE[name]
    files, again, whole = kept(tmp_path)
    files[0].write_bytes(damage(files[0].read_bytes()))
    assert again() == (batches, whole)


def test_a_batch_of_another_place_is_computed_again(tmp_path):
    files, again, whole = kept(tmp_path)
    files[0].write_bytes(files[1].read_bytes())
    assert again() == (2, whole)


def test_no_flipped_bit_is_trusted(tmp_path):
    """Every eleventh bit of a kept batch and of its protocol: the zip's CRC does not see those of names and headers."""
    files, _, _ = kept(tmp_path)
    batches = Kept(tmp_path / "kept", json.loads((tmp_path / "kept" / "protocol.json").read_text()))
    content = files[0].read_bytes()
    assert batches.read(0, 4) is not None
    for bit in range(0, 8 * len(content), 11):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        files[0].write_bytes(bytes(flipped))
        assert batches.read(0, 4) is None


def test_nan_is_not_kept_as_if_it_were_known(tmp_path):
    batches = Kept(tmp_path / "kept", {})
    batches.prepare()
    batches.write(0, {"bits": np.array([1.0, np.nan])})
    assert batches.read(0, 2) is None
    batches.write(0, {"bits": np.array([1.0, 2.0])})
    assert batches.read(0, 2) is not None
    assert batches.read(0, 3) is None
    assert batches.read(2, 2) is None
