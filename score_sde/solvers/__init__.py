"""Solvers. ``SOLVERS`` maps the names that configs use to what builds them; each can be built with its defaults."""

from score_sde.solvers.adaptive_sde import AdaptiveSDE
from score_sde.solvers.ancestral import Ancestral
from score_sde.solvers.annealed_langevin import AnnealedLangevin
from score_sde.solvers.base import Sample, Solver, SolverError
from score_sde.solvers.ddim import DDIM
from score_sde.solvers.deis import DEIS
from score_sde.solvers.dpm_solver import DPMSolver
from score_sde.solvers.dpm_solver_pp import DPMSolverPP, SDEDPMSolverPP
from score_sde.solvers.euler_maruyama import EulerMaruyama
from score_sde.solvers.gaussian import GaussianReference, match_moments
from score_sde.solvers.heun import EDM, Heun
from score_sde.solvers.langevin import LangevinDynamics
from score_sde.solvers.latent import decode, encode, interpolate
from score_sde.solvers.predictor_corrector import PREDICTORS, Langevin, PredictorCorrector, predictor_corrector
from score_sde.solvers.probability_flow import ProbabilityFlow
from score_sde.solvers.reverse_diffusion import ReverseDiffusion
from score_sde.solvers.stochastic_heun import StochasticHeun
from score_sde.solvers.tuned import Tuned
from score_sde.solvers.unipc import UniPC

SOLVERS = {
    **PREDICTORS,
    "adaptive_sde": AdaptiveSDE,
    "annealed_langevin": AnnealedLangevin,
    "langevin": LangevinDynamics,
    "pc": predictor_corrector,
    "ode": ProbabilityFlow,
}

__all__ = [
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolverPP",
    "EDM",
    "EulerMaruyama",
    "GaussianReference",
    "Heun",
    "Langevin",
    "LangevinDynamics",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "SDEDPMSolverPP",
    "SOLVERS",
    "Sample",
    "Solver",
    "SolverError",
    "StochasticHeun",
    "Tuned",
    "UniPC",
    "decode",
    "encode",
    "interpolate",
    "match_moments",
    "predictor_corrector",
]
