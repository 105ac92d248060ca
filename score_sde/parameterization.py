r"""What a network predicts: a table of coefficients.

    score(x, t) = a x + b F(c_in x, c_noise)

With x = alpha x0 + sigma epsilon, any two of x, x0, epsilon, v = alpha epsilon - sigma x0 and the score -epsilon / sigma
give the others, so that a parameterization is three numbers at each t. Solving for the score, with n^2 = alpha^2 + sigma^2
(1 for a variance-preserving SDE, and not assumed to be):

    score     a = 0                     b = 1
    epsilon   a = 0                     b = -1 / sigma
    x0        a = -1 / sigma^2          b = alpha / sigma^2
    v         a = -1 / n^2              b = -alpha / (sigma n^2)              (Salimans and Ho 2022, Appendix D)
    edm       a = -1 / m^2              b = alpha sigma_data / (sigma m)      (Karras et al. 2022, Table 1)

with m^2 = sigma^2 + alpha^2 sigma_data^2, the variance of x_t for data of variance sigma_data^2. The last row is EDM's
c_skip and c_out, written there for x / alpha and s = sigma / alpha: D = c_skip x / alpha + c_out F,
score = (alpha D - x) / sigma^2, and 1 - c_skip = s^2 / (s^2 + sigma_data^2) is taken before anything cancels.

c_in brings the input to unit scale: 1/n for the first four rows, which is exactly 1 for a variance-preserving SDE, and 1/m
for EDM.

How the time is fed, c_noise, is a choice of its own: ``TIME_INPUTS``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """a, b and c_in at each time, in the shape of the time."""

    a: Tensor
    b: Tensor
    c_in: Tensor


def _score(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), _unit(alpha, sigma))


def _epsilon(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(torch.zeros_like(sigma), -1 / sigma, _unit(alpha, sigma))


def _x0(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(-1 / sigma**2, alpha / sigma**2, _unit(alpha, sigma))


def _v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    c_in = _unit(alpha, sigma)
    return Coefficients(-(c_in**2), -alpha / sigma * c_in**2, c_in)


def _edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Coefficients:
    c_in = _unit(alpha * sigma_data, sigma)
    return Coefficients(-(c_in**2), alpha * sigma_data / sigma * c_in, c_in)


def _unit(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 1 / torch.hypot(alpha, sigma)


PARAMETERIZATIONS: dict[str, Callable[[Tensor, Tensor, float], Coefficients]] = {
    "score": _score,
    "epsilon": _epsilon,
    "x0": _x0,
    "v": _v,
    "edm": _edm,
}
"""Name -> function of alpha, sigma and sigma_data that gives ``Coefficients``."""

TIME_INPUTS: dict[str, Callable] = {
    "label": lambda sde, t: 999 * t / sde.T,
    "sigma": lambda sde, t: sde.sigma(t),
    "log_snr": lambda sde, t: sde.log_snr(t),
    "edm": lambda sde, t: -sde.log_snr(t) / 8,
}
"""Name -> function of the SDE and t that gives c_noise: 999 t / T, sigma, log-SNR, or ln(sigma / alpha) / 4."""
