"""Likelihoods: log p in nats in model coordinates, and bits/dim of data in its own units, exact or bounded."""

from score_sde.likelihood.bayes import class_posterior
from score_sde.likelihood.bits import bits_per_dim, prior_mismatch
from score_sde.likelihood.chain import discrete_bound
from score_sde.likelihood.continuous import continuous_bound
from score_sde.likelihood.dequantization import DEQUANTIZATIONS
from score_sde.likelihood.dual_weighted import DualWeighted
from score_sde.likelihood.ode import LogLikelihood, log_likelihood
from score_sde.likelihood.record import BitsPerDim, VariationalBound
from score_sde.likelihood.sampling import ScoredSample, sample_with_log_prob
from score_sde.likelihood.variational import VariationalDequantizer, fit_dequantizer
from score_sde.solvers.probability_flow import ProbabilityFlow

LIKELIHOOD_SOLVERS = {"dual_weighted": DualWeighted, "ode": ProbabilityFlow}
"""Name -> how the ODE of a likelihood is solved."""

__all__ = [
    "BitsPerDim",
    "DEQUANTIZATIONS",
    "DualWeighted",
    "LIKELIHOOD_SOLVERS",
    "LogLikelihood",
    "ScoredSample",
    "VariationalBound",
    "VariationalDequantizer",
    "bits_per_dim",
    "class_posterior",
    "continuous_bound",
    "discrete_bound",
    "fit_dequantizer",
    "log_likelihood",
    "prior_mismatch",
    "sample_with_log_prob",
]
