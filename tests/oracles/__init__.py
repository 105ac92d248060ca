"""What tests and benchmarks share: SDEs, mixtures with known answers, scores around others, moments of solvers, peers."""

from tests.oracles.mixtures import cell_probabilities, digits_mixture, exact_moments, gaussian, mixture
from tests.oracles.moments import BatchNoise, Given, affine_moments, check_moments, expectation
from tests.oracles.scores import Around, BrokenScore, OwnPrecision, Recorder, ScaledScore, autograd_score
from tests.oracles.sdes import PUBLISHED, SDE_CASES, DoubleWellSDE, NoisyStartSDE, OrnsteinUhlenbeckSDE, QuarterCircleSDE

__all__ = [
    "PUBLISHED",
    "SDE_CASES",
    "Around",
    "BatchNoise",
    "BrokenScore",
    "DoubleWellSDE",
    "Given",
    "NoisyStartSDE",
    "OrnsteinUhlenbeckSDE",
    "OwnPrecision",
    "QuarterCircleSDE",
    "Recorder",
    "ScaledScore",
    "affine_moments",
    "autograd_score",
    "cell_probabilities",
    "check_moments",
    "digits_mixture",
    "exact_moments",
    "expectation",
    "gaussian",
    "mixture",
]
