"""Score-based generative models in continuous time.

A forward SDE turns data into noise, a network learns the score of the noisy data, a solver runs the process backwards:
three independent choices.
"""

from importlib.metadata import PackageNotFoundError, version

from score_sde.data import DataSpec
from score_sde.divergence import ExactDivergence, Hutchinson, HutchPlusPlus
from score_sde.exact import GaussianMixture
from score_sde.experiments.tuning import tune
from score_sde.likelihood import (
    DualWeighted,
    bits_per_dim,
    class_posterior,
    fit_dequantizer,
    log_likelihood,
    sample_with_log_prob,
)
from score_sde.model import ScoreModel
from score_sde.run import load
from score_sde.score import Score
from score_sde.sdes import SDE, VESDE, VPSDE, SubVPSDE, TabulatedSDE
from score_sde.solvers import (
    DDIM,
    DEIS,
    EDM,
    AdaptiveSDE,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverPP,
    EulerMaruyama,
    GaussianReference,
    Heun,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Sample,
    SDEDPMSolverPP,
    SolverError,
    StochasticHeun,
    Tuned,
    UniPC,
    decode,
    encode,
    interpolate,
    match_moments,
)

try:
    __version__ = version("score_sde")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0"

__all__ = [
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolverPP",
    "DataSpec",
    "DualWeighted",
    "EDM",
    "EulerMaruyama",
    "ExactDivergence",
    "GaussianMixture",
    "GaussianReference",
    "Heun",
    "HutchPlusPlus",
    "Hutchinson",
    "Langevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "SDE",
    "SDEDPMSolverPP",
    "Sample",
    "Score",
    "ScoreModel",
    "SolverError",
    "StochasticHeun",
    "SubVPSDE",
    "TabulatedSDE",
    "Tuned",
    "UniPC",
    "VESDE",
    "VPSDE",
    "bits_per_dim",
    "class_posterior",
    "decode",
    "encode",
    "fit_dequantizer",
    "interpolate",
    "load",
    "log_likelihood",
    "match_moments",
    "sample_with_log_prob",
    "tune",
]
