"""Score-based generative models in continuous time.

A forward SDE turns data into noise, a network learns the score of the noisy data, a solver runs the process backwards:
three independent choices.
"""

from importlib.metadata import PackageNotFoundError, version

from score_sde.data import DataSpec
from score_sde.divergence import ExactDivergence, Hutchinson, HutchPlusPlus
from score_sde.exact import GaussianMixture
from score_sde.likelihood import DualWeighted, bits_per_dim, class_posterior, fit_dequantizer, log_likelihood
from score_sde.model import Score, ScoreModel
from score_sde.run import load
from score_sde.sdes import SDE, VESDE, VPSDE, SubVPSDE, TabulatedSDE
from score_sde.solvers import DDIM, EulerMaruyama, Langevin, PredictorCorrector, ProbabilityFlow, Sample, SolverError

try:
    __version__ = version("score_sde")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0"

__all__ = [
    "DDIM",
    "DataSpec",
    "DualWeighted",
    "EulerMaruyama",
    "ExactDivergence",
    "GaussianMixture",
    "HutchPlusPlus",
    "Hutchinson",
    "Langevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "SDE",
    "Sample",
    "Score",
    "ScoreModel",
    "SolverError",
    "SubVPSDE",
    "TabulatedSDE",
    "VESDE",
    "VPSDE",
    "bits_per_dim",
    "class_posterior",
    "fit_dequantizer",
    "load",
    "log_likelihood",
]
