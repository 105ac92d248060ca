"""Likelihoods: log p in nats in model coordinates, and bits/dim of data in its own units."""

from score_sde.likelihood.dequantization import DEQUANTIZATIONS, BitsPerDim, bits_per_dim, prior_mismatch
from score_sde.likelihood.ode import LogLikelihood, log_likelihood

__all__ = ["BitsPerDim", "DEQUANTIZATIONS", "LogLikelihood", "bits_per_dim", "log_likelihood", "prior_mismatch"]
