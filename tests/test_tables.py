"""Tables of choices: one form for all of them, and what is said where a name or an option is not known."""

import copy
import inspect
import json
import pickle
import re
from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import walk_packages

import pytest
import torch

import score_sde
from score_sde.data import DATASETS
from score_sde.divergence import DIVERGENCES
from score_sde.likelihood import DEQUANTIZATIONS, LIKELIHOOD_SOLVERS
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES, WEIGHTINGS
from score_sde.objectives.steps import STEPS
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS
from score_sde.sdes import SDES, VPSDE
from score_sde.solvers import SOLVERS, DPMSolverPP
from score_sde.solvers.predictor_corrector import CORRECTORS, PREDICTORS
from score_sde.solvers.time_grids import TIME_GRIDS
from score_sde.tables import (
    CALLED_ELSEWHERE,
    Choice,
    OptionError,
    build,
    check_like,
    did_you_mean,
    nearest,
    options_of,
    section,
)
from score_sde.time_sampling import TIMES


def test_a_choice_is_built_from_a_section_or_from_a_word():
    assert build(SDES, {"name": "vp", "vp": {"beta_max": 10.0}, "ve": {"sigma_min": 3.0}}, kind="sde") == VPSDE(beta_max=10.0)
    assert build(SDES, {"name": "vp"}, kind="sde") == build(SDES, "vp", kind="sde") == VPSDE()
    assert build(NETWORKS, {"name": "mlp", "mlp": {"width": 8}}, (3,), kind="network").first.in_features == 3


def test_lists_as_json_has_them_are_tuples():
    made = build({"of": lambda sizes=None: sizes}, {"name": "of", "of": {"sizes": [3, [4, 5]]}}, kind="list")
    assert made == (3, (4, 5))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("subvq", r"unknown sde 'subvq', did you mean subvp\?; choose one of vp, subvp, ve, ddpm"),
        ("zzzz", r"unknown sde 'zzzz'; choose one of vp"),
        ({"name": 3}, r"unknown sde 3"),
        ({"name": "vp", "vp": {"beta_maximum": 1.0}}, r"sde.vp has no option beta_maximum, did you mean beta_max\?"),
        ({"name": "vp", "vp": {"beta_max": "much"}}, r"sde.vp.beta_max must be a number, got 'much'"),
        ({"name": "vp", "vp": {"beta_max": -1.0}}, r"sde.vp: need 0 <= beta_min <= beta_max"),
        ({"name": "ddpm", "ddpm": {"schedule": "steep"}}, r"sde.ddpm: unknown schedule 'steep'"),
    ],
)
def test_what_cannot_be_built_is_said(section, message):
    with pytest.raises(OptionError, match=message):
        build(SDES, section, kind="sde")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("euler", SOLVERS, "euler_maruyama"),
        ("dpm++", SOLVERS, "dpm_solver_pp"),
        ("DPM-Solver++", SOLVERS, "dpm_solver_pp"),
        ("ddpm", SOLVERS, "ancestral"),
        ("DDIM", SOLVERS, "ddim"),
        ("karras", TIME_GRIDS, "edm"),
        ("order", options_of(DPMSolverPP), "p"),
        ("num_inference_steps", options_of(DPMSolverPP), "steps"),
        ("--num_inference_steps", ["--nfe", "--count"], "--nfe"),
        ("euler", ["euler", "midpoint"], "euler"),
        ("ddpm", SDES, "ddpm"),
        ("unpic", SOLVERS, "unipc"),
        ("zzzz", SOLVERS, None),
    ],
)
def test_what_was_meant(word, known, meant):
    assert nearest(word, known) == meant
    assert did_you_mean(word, known) == (f", did you mean {meant}?" if meant else "")


def test_names_from_elsewhere_are_in_the_form_in_which_they_are_looked_up():
    for theirs in CALLED_ELSEWHERE.values():
        assert theirs == theirs.lower()
        assert "-" not in theirs


def test_a_section_has_the_options_of_every_entry():
    table = {"a": lambda x=1: None, "b": lambda shape, y=2, z="w": None}
    assert section(table, "b", "z") == {"name": "b", "a": {"x": 1}, "b": {"y": 2}}


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (1, True),
        (True, 1),
        (1.5, 1),
        ("1", 1),
        (True, 1.0),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        (2**70, 1),
        (3, (1, 2)),
        (["a"], (1,)),
    ],
)
def test_a_value_of_another_kind_is_refused(value, default):
    with pytest.raises(OptionError, match=r"^this must be "):
        check_like(value, default, "this")


@pytest.mark.parametrize(
    ("value", "default"), [(1, 1.0), (float("inf"), float("inf")), ([1, 2.5], (1,)), ("a", "b"), (None, None), (False, True)]
)
def test_a_value_of_the_same_kind_is_taken(value, default):
    check_like(value, default, "this")


# choices within choices


@dataclass(frozen=True)
class Constant:
    value: float = 1.0


@dataclass(frozen=True)
class Decaying:
    """From a choice down."""

    start: Choice[Constant] = Choice({"constant": Constant}, Constant(3.0))
    rates: tuple[float, ...] = (0.5,)


RATES = {"constant": Constant, "decaying": Decaying}


@dataclass(frozen=True)
class Schedule:
    rate: Choice[Constant | Decaying] = Choice(RATES, "decaying")
    steps: int = 2


SCHEDULES = {"plain": Schedule}
DEEP = {
    "name": "plain",
    "plain": {
        "rate": {
            "name": "decaying",
            "constant": {"value": 1.0},
            "decaying": {"start": {"name": "constant", "constant": {"value": 3.0}}, "rates": (0.5,)},
        },
        "steps": 2,
    },
}


def test_a_choice_within_a_choice_is_a_section_within_a_section():
    assert section(SCHEDULES, "plain") == section(SCHEDULES, Schedule()) == DEEP
    assert options_of(Schedule) == DEEP["plain"]
    made = Schedule(Decaying(Constant(7.0), (0.1, 0.2)), steps=3)
    written = section(SCHEDULES, made)
    assert written["plain"]["rate"]["decaying"] == {
        "start": {"name": "constant", "constant": {"value": 7.0}},
        "rates": (0.1, 0.2),
    }
    assert build(SCHEDULES, json.loads(json.dumps(written)), kind="schedule") == made


@pytest.mark.parametrize(
    "given",
    ["constant", Constant(), {"name": "constant"}, {"name": "constant", "constant": {"value": 1.0}, "decaying": {"rates": ()}}],
)
def test_a_choice_is_given_by_a_word_an_object_or_a_section(given):
    made = Schedule(rate=given)
    assert made == build(SCHEDULES, {"name": "plain", "plain": {"rate": given}}, kind="schedule") == Schedule(Constant())
    assert made.rate == Constant()
    assert (repr(made), hash(made)) == ("Schedule(rate=Constant(value=1.0), steps=2)", hash(Schedule(Constant())))
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == replace(made, steps=2) == made
    assert made != Schedule(rate=Constant(2.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("constnt", r"unknown rate 'constnt', did you mean constant\?; choose one of constant, decaying"),
        (Constant, r"rate must be an instance, Constant\(...\), got the class Constant itself"),
        (3, "rate must be one of constant, decaying, or an object of such a class, got 3"),
        (None, "rate must be one of constant, decaying, or an object"),
        ({"name": "constant", "constant": {"vale": 1.0}}, r"rate.constant has no option vale, did you mean value\?"),
        ({"name": "decaying", "decaying": {"start": {"name": "x"}}}, "rate.decaying: unknown start 'x'; choose one of"),
    ],
)
def test_what_a_choice_does_not_take_is_said(given, message):
    with pytest.raises(OptionError, match=f"^{message}"):
        Schedule(rate=given)
    if not isinstance(given, type | None):
        with pytest.raises(OptionError, match=rf"^schedule\.plain: {message}"):
            build(SCHEDULES, {"name": "plain", "plain": {"rate": given}}, kind="schedule")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Schedule, r"schedule must be an instance, Schedule\(...\), got the class Schedule itself"),
        ("plane", r"unknown schedule 'plane', did you mean plain\?"),
        (Constant(), r"schedule Constant\(value=1.0\) cannot be written to config.json: give one of plain, or add its class"),
        (Schedule(len), "schedule.plain.rate .* cannot be written to config.json: give one of constant, decaying"),
    ],
)
def test_what_has_no_section_is_said(chosen, message):
    with pytest.raises(OptionError, match=message):
        section(SCHEDULES, chosen, kind="schedule")


# all tables

CHOICES = {
    "sde": (SDES, ()),
    "network": (NETWORKS, ((1, 8, 8),)),
    "solver": (SOLVERS, ()),
    "predictor": (PREDICTORS, ()),
    "corrector": (CORRECTORS, ()),
    "data": (DATASETS, None),  # which are read from files
    "objective": (OBJECTIVES, ()),
    "weighting": (WEIGHTINGS, ()),
    "times": (TIMES, ()),
    "steps": (STEPS, ()),
    "time grid": (TIME_GRIDS, ()),
    "divergence": (DIVERGENCES, ()),
    "likelihood.solver": (LIKELIHOOD_SOLVERS, ()),
}
"""Tables of what is built, and what every entry is built from beside its options."""

FORMULAS = {
    "parameterization": (PARAMETERIZATIONS, 3),
    "time_input": (TIME_INPUTS, 3),
    "dequantization": (DEQUANTIZATIONS, 4),
}
"""Tables of functions without options, and the number of their arguments."""


def test_every_table_of_the_package_is_here():
    """A table is a dict in capitals from words to what can be called."""
    known = [id(table) for table, _ in (*CHOICES.values(), *FORMULAS.values())]
    parts = {"ACTIVATIONS"}  # what a network is made of
    names = [found.name for found in walk_packages(score_sde.__path__, "score_sde.") if not found.name.endswith("__main__")]
    for module in map(import_module, names):
        for name, value in vars(module).items():
            table = isinstance(value, dict) and name.isupper() and not name.startswith("_")
            if table and value and all(isinstance(key, str) and callable(made) for key, made in value.items()):
                assert id(value) in known or name in parts, f"{module.__name__}.{name}"


@pytest.mark.parametrize("kind", CHOICES)
def test_every_choice_has_flat_arguments_with_defaults(kind):
    """Numbers, words, truth values and tuples of numbers, which a config and a command line can hold, or another choice."""
    table, given = CHOICES[kind]
    for name, builder in table.items():
        parameters = list(inspect.signature(builder).parameters.values())
        needed = [p for p in parameters if p.default is p.empty]
        assert len(needed) == len(given or ()), name
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters), name
        for key, default in options_of(builder).items():
            if isinstance(default, dict):
                table = next(table for table, _ in CHOICES.values() if {"name", *table} == set(default))
                assert default == section(table, default["name"]), f"{name}.{key}"
            elif default is not None:
                check_like(default, default, f"{name}.{key}")
                assert isinstance(default, bool | int | float | str | tuple), f"{name}.{key}"


@pytest.mark.parametrize("kind", [kind for kind, (_, given) in CHOICES.items() if given is not None])
def test_every_choice_is_built_from_its_name_or_its_section(kind):
    table, given = CHOICES[kind]
    for name, builder in table.items():
        if (kind, name) == ("network", "diffusers"):
            continue  # it needs settings
        with torch.device("meta" if kind == "network" else "cpu"):
            by_name, by_section = (build(table, chosen, *given, kind=kind) for chosen in (name, section(table, name)))
        assert type(by_name) is type(by_section), name
        if kind != "network":  # modules are equal to themselves alone
            assert by_name == by_section == builder(), name
        with pytest.raises(OptionError, match=rf"unknown {kind} '{re.escape(name)}_', did you mean {re.escape(name)}\?"):
            build(table, f"{name}_", *given, kind=kind)
        with pytest.raises(OptionError, match=rf"{kind}.{re.escape(name)} has no option qqqqqqqq"):
            build(table, {"name": name, name: {"qqqqqqqq": 1}}, *given, kind=kind)


@pytest.mark.parametrize("kind", FORMULAS)
def test_every_formula_has_the_arguments_of_its_table(kind):
    table, count = FORMULAS[kind]
    assert {len(inspect.signature(formula).parameters) for formula in table.values()} == {count}
