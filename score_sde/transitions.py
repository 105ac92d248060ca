r"""Gaussian steps of a linear SDE, forwards and backwards, between two times s < t.

    q(x_t | x_s)     = N(a x_s, beta I),           a = alpha_t / alpha_s,   beta = sigma_t^2 - a^2 sigma_s^2
    q(x_s | x_t, x0) = N(mu(x0), beta_tilde I),    mu(x0) = (a sigma_s^2 x_t + alpha_s beta x0) / sigma_t^2,
                                                   beta_tilde = beta sigma_s^2 / sigma_t^2

(Ho et al. 2020, Eq. 6 and 7, where alpha^2 + sigma^2 = 1; Kingma et al. 2021, Appendix A). With lambda = log(alpha / sigma),
beta = sigma_t^2 (1 - exp(2 (lambda_t - lambda_s))) loses no digits in a short step, and holds at sigma_s = 0.

A model's step is N(mu(x0_hat), Sigma), x0_hat = (x_t + sigma_t^2 score) / alpha_t. As a sigma_s^2 + beta / a = sigma_t^2 / a,
its mean is (x_t + beta score) / a. Its variance Sigma is beta, beta_tilde, or learned. A model that has learned it is told the
two ends, log beta_tilde and log beta, and gives log Sigma (Nichol and Dhariwal 2021, Eq. 15).
"""

import torch
from torch import Tensor

from score_sde.sdes import SDE

VARIANCES: dict[str, float | None] = {"beta_tilde": 0.0, "beta": 1.0, "learned": None}
"""Name -> v in log Sigma = v log beta + (1 - v) log beta_tilde; None where the model gives it."""


def forward_transition(sde: SDE, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and beta of the forward transition from ``s`` to ``t`` >= ``s``, in the shape of the times."""
    return sde.alpha(t) / sde.alpha(s), -(sde.sigma(t) ** 2) * torch.expm1(sde.log_snr(t) - sde.log_snr(s))


def variance_ends(sde: SDE, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """log beta_tilde and log beta of the step from ``t`` to ``s`` <= ``t``, in the shape of the times."""
    log_beta = forward_transition(sde, s, t)[1].log()
    return log_beta + 2 * (sde.sigma(s) / sde.sigma(t)).log(), log_beta


def step_divergence(error: Tensor, gain: Tensor, r: Tensor) -> Tensor:
    r"""KL(q(x_s | x_t, x0) || N(mu(x0_hat), Sigma)) of each coordinate, in nats, ``(B, *D)``.

    With e = epsilon + sigma_t score, x0 - x0_hat = -(sigma_t / alpha_t) e, so that nothing cancels in

        KL = [ r + expm1(-r) + expm1(2 (lambda_s - lambda_t)) exp(-r) e^2 ] / 2,     r = log Sigma - log beta_tilde,

    whose last part alone is left where r = 0 (Kingma et al. 2021, Eq. 14). At beta, r is log(sigma_t^2 / sigma_s^2).

    Args:
        error: e.
        gain: expm1(2 (lambda_s - lambda_t)), which broadcasts with ``error``.
        r: as above, likewise.
    """
    return (r + torch.expm1(-r) + gain * (-r).exp() * error**2) / 2
