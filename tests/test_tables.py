"""Tables of choices: one form for all of them, and what is said where a name or an option is not known."""

import pytest

from score_sde.networks import NETWORKS
from score_sde.sdes import SDES, VPSDE
from score_sde.solvers import SOLVERS, DPMSolverPP
from score_sde.solvers.time_grids import TIME_GRIDS
from score_sde.tables import CALLED_ELSEWHERE, OptionError, build, check_like, did_you_mean, nearest, options_of, section


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
