"""Likelihoods: log p in nats in model coordinates, and bits/dim of data in its own units, exact or bounded."""

from score_sde.likelihood.dequantization import DEQUANTIZATIONS
from score_sde.likelihood.elbo import VARIANCES, VariationalBound, continuous_bound, discrete_bound
from score_sde.likelihood.ode import LogLikelihood, log_likelihood
from score_sde.likelihood.record import BitsPerDim, bits_per_dim, prior_mismatch

__all__ = [
    "BitsPerDim",
    "DEQUANTIZATIONS",
    "LogLikelihood",
    "VARIANCES",
    "VariationalBound",
    "bits_per_dim",
    "continuous_bound",
    "discrete_bound",
    "log_likelihood",
    "prior_mismatch",
]
