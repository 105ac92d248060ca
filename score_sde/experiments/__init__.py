"""What is done with a trained model: solvers compared, and chosen by measurement."""

from score_sde.experiments.comparison import Comparison, Measurement, compare
from score_sde.experiments.tuning import tune

__all__ = ["Comparison", "Measurement", "compare", "tune"]
