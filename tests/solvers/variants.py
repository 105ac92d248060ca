"""Every solver of the table in every variant of its method, for tests that must leave none out."""

import dataclasses
import itertools

from score_sde import VPSDE
from score_sde.solvers import PREDICTORS, SOLVERS, PredictorCorrector
from score_sde.solvers.deis import VARIABLES
from score_sde.solvers.fixed_steps import StepSolver
from score_sde.solvers.gaussian import REFERENCES
from score_sde.solvers.probability_flow import METHODS
from score_sde.solvers.unipc import VARIANTS

VALUES = {
    "p": (1, 2, 3),
    "variant": VARIANTS,
    "variable": VARIABLES,
    "corrector": (True, False),
    "reference": REFERENCES,
    "lower_order_first": (False, True),
    "lower_order_final": (False, True),
    "order": (2, 3),
    "method": METHODS,
    "variance": ("beta_tilde", "beta"),  # learned needs a network of its own: tests/solvers/test_ancestral.py
    "eta": (0.0, 0.7, 1.0),
    "s_churn": (0.0, 20.0),
    "first": (False, True),
}
"""Options that change the method, and their values."""

SIZES = {"steps", "step_size", "grid", "corrections", "snr", "s_min", "s_max", "s_noise", "rtol", "atol", "safety", "exponent"}
"""Options that change how large or how many the steps are."""


def goes_to_data(solver):
    """Whether a solver goes from noise to data, by its own statement; others have tests of their own."""
    try:
        solver.require_sde(VPSDE())
        return True
    except ValueError:
        return False


def variants(name):
    """Words -> solver, for the solver called ``name`` in the table."""
    build = SOLVERS[name]
    if build().__class__ is PredictorCorrector:
        pairs = itertools.product(PREDICTORS, VALUES["first"])
        return {f"pc {predictor} first={first}": build(predictor=predictor, first=first) for predictor, first in pairs}
    options = [field.name for field in dataclasses.fields(build)]
    unknown = set(options) - set(VALUES) - SIZES
    assert not unknown, f"say in {__file__} which values {unknown} of {name} takes, or that it only sizes the steps"
    changing = [option for option in options if option in VALUES]
    found = {}
    for values in itertools.product(*(VALUES[option] for option in changing)):
        chosen = dict(zip(changing, values, strict=True))
        p = chosen.get("p", 3)
        if (name == "sde_dpm_solver_pp" and p > 2) or (chosen.get("lower_order_first") and p < 3):
            continue  # there is no such method, or it is that without the option
        if chosen.get("lower_order_final") and p < 2:
            continue
        found[" ".join([name, *(f"{option}={value}" for option, value in chosen.items())])] = build(**chosen)
    return found


TO_DATA = [name for name, build in SOLVERS.items() if goes_to_data(build())]
ALL = {words: solver for name in TO_DATA for words, solver in variants(name).items()}
FIXED_STEPS = {words: solver for words, solver in ALL.items() if isinstance(solver, StepSolver)}
DECLARED = {words: solver for words, solver in ALL.items() if solver.order is not None}


def with_steps(solver, steps):
    """``solver`` with a number of steps."""
    if isinstance(solver, PredictorCorrector):
        return dataclasses.replace(solver, predictor=with_steps(solver.predictor, steps))
    return dataclasses.replace(solver, steps=steps)
