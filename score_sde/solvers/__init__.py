"""Solvers. ``SOLVERS`` maps the names that configs use to what builds them; each can be built with its defaults."""

from score_sde.solvers.base import Counter, Sample, Solver, SolverError, counted
from score_sde.solvers.ddim import DDIM
from score_sde.solvers.deis import DEIS
from score_sde.solvers.dpm_solver import DPMSolver
from score_sde.solvers.dpm_solver_pp import DPMSolverPP, SDEDPMSolverPP
from score_sde.solvers.euler_maruyama import EulerMaruyama
from score_sde.solvers.gaussian import GaussianReference
from score_sde.solvers.heun import EDM, Heun
from score_sde.solvers.predictor_corrector import Langevin, PredictorCorrector, predictor_corrector
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.solvers.unipc import UniPC

SOLVERS = {
    "euler_maruyama": EulerMaruyama,
    "pc": predictor_corrector,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "heun": Heun,
    "edm": EDM,
    "dpm_solver": DPMSolver,
    "dpm_solver_pp": DPMSolverPP,
    "sde_dpm_solver_pp": SDEDPMSolverPP,
    "deis": DEIS,
    "unipc": UniPC,
    "gaussian": GaussianReference,
}

__all__ = [
    "Counter",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolverPP",
    "EDM",
    "EulerMaruyama",
    "GaussianReference",
    "Heun",
    "Langevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "SDEDPMSolverPP",
    "SOLVERS",
    "Sample",
    "Solver",
    "SolverError",
    "UniPC",
    "counted",
    "predictor_corrector",
]
