"""Solvers. ``SOLVERS`` maps the names that configs use to what builds them; each can be built with its defaults."""

from score_sde.solvers.base import Counter, Sample, Solver, SolverError, counted
from score_sde.solvers.ddim import DDIM
from score_sde.solvers.euler_maruyama import EulerMaruyama
from score_sde.solvers.predictor_corrector import Langevin, PredictorCorrector, predictor_corrector
from score_sde.solvers.probability_flow import ProbabilityFlow

SOLVERS = {
    "euler_maruyama": EulerMaruyama,
    "pc": predictor_corrector,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
}

__all__ = [
    "Counter",
    "DDIM",
    "EulerMaruyama",
    "Langevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "SOLVERS",
    "Sample",
    "Solver",
    "SolverError",
    "counted",
    "predictor_corrector",
]
