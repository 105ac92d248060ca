"""Score-based generative models in continuous time.

A forward SDE turns data into noise, a network learns the score of the noisy data, a solver runs the process backwards:
three independent choices.

Importing the package imports nothing else. A name is looked up where it is defined when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time, _HOMES says where a name is
    from score_sde.data import DataSpec, TensorSource
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
    from score_sde.sdes import SDE, VESDE, VPSDE, CosineSDE, FixedNoise, LogSNRSDE, StraightSDE, SubVPSDE, TabulatedSDE
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
        LangevinDynamics,
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
    from score_sde.training import TrainingOptions, fit

    __version__: str

__all__ = [
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "CosineSDE",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolverPP",
    "DataSpec",
    "DualWeighted",
    "EDM",
    "EulerMaruyama",
    "ExactDivergence",
    "FixedNoise",
    "GaussianMixture",
    "GaussianReference",
    "Heun",
    "HutchPlusPlus",
    "Hutchinson",
    "Langevin",
    "LangevinDynamics",
    "LogSNRSDE",
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
    "StraightSDE",
    "SubVPSDE",
    "TabulatedSDE",
    "TensorSource",
    "TrainingOptions",
    "Tuned",
    "UniPC",
    "VESDE",
    "VPSDE",
    "bits_per_dim",
    "class_posterior",
    "decode",
    "encode",
    "fit",
    "fit_dequantizer",
    "interpolate",
    "load",
    "log_likelihood",
    "match_moments",
    "sample_with_log_prob",
    "tune",
]

_HOMES = {
    "data": "DataSpec TensorSource",
    "divergence": "ExactDivergence Hutchinson HutchPlusPlus",
    "exact": "GaussianMixture",
    "experiments.tuning": "tune",
    "likelihood": "DualWeighted bits_per_dim class_posterior fit_dequantizer log_likelihood sample_with_log_prob",
    "model": "ScoreModel",
    "run": "load",
    "score": "Score",
    "sdes": "SDE VESDE VPSDE CosineSDE FixedNoise LogSNRSDE StraightSDE SubVPSDE TabulatedSDE",
    "solvers": (
        "DDIM DEIS EDM AdaptiveSDE Ancestral AnnealedLangevin DPMSolver DPMSolverPP EulerMaruyama GaussianReference "
        "Heun Langevin LangevinDynamics PredictorCorrector ProbabilityFlow ReverseDiffusion Sample SDEDPMSolverPP SolverError "
        "StochasticHeun Tuned UniPC decode encode interpolate match_moments"
    ),
    "training": "TrainingOptions fit",
}
"""The public names of each module."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif home := next((module for module, names in _HOMES.items() if name in names.split()), ""):
        value = getattr(_imported(f"score_sde.{home}"), name)
    else:
        value = _submodule(name)
    globals()[name] = value
    return value


def _imported(module: str) -> Any:
    """A module, imported without collecting garbage: the collector would walk through all of torch, and find none."""
    import gc

    collecting = gc.isenabled()
    gc.disable()
    try:
        return import_module(module)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _submodule(name: str) -> Any:
    """A module of the package, as ``score_sde.likelihood`` without an import of its own."""
    try:
        if name.startswith("_"):
            raise ModuleNotFoundError(name=f"score_sde.{name}")
        return _imported(f"score_sde.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"score_sde.{name}":
            raise
        raise AttributeError(f"module 'score_sde' has no attribute {name!r}", name=name) from None


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("score_sde")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "0"
