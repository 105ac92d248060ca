r"""What a network predicts: a table of coefficients.

    score(x, t) = a x + b F(c_in x, c_noise)

With x = alpha x0 + sigma epsilon, any two of x, x0, epsilon, v = alpha epsilon - sigma x0 and the score -epsilon / sigma
give the others, so that a parameterization is three numbers at each t. Solving for the score, with n^2 = alpha^2 + sigma^2
(1 for a variance-preserving SDE, and not assumed to be):

    score     a = 0                     b = 1
    ncsn      a = 0                     b = 1 / sigma                         (Song and Ermon 2020, Technique 3)
    epsilon   a = 0                     b = -1 / sigma
    x0        a = -1 / sigma^2          b = alpha / sigma^2
    v         a = -1 / n^2              b = -alpha / (sigma n^2)              (Salimans and Ho 2022, Appendix D)
    edm       a = -1 / m^2              b = alpha sigma_data / (sigma m)      (Karras et al. 2022, Table 1)
    mu        a = -1 / beta             b = sqrt(1 - beta) / beta             (Ho et al. 2020, Section 3.2)
    mu_respaced   the same, of the steps that a respaced chain keeps
    velocity  a = 2 f / g^2             b = -2 / g^2                          (Lipman et al. 2023, Eq. 14)

with m^2 = sigma^2 + alpha^2 sigma_data^2, the mean square of x_t for data of mean square sigma_data^2. The row ``edm`` is EDM's
c_skip and c_out, written there for x / alpha and s = sigma / alpha: D = c_skip x / alpha + c_out F,
score = (alpha D - x) / sigma^2, and 1 - c_skip = s^2 / (s^2 + sigma_data^2) is taken before anything cancels.

mu is the mean of x one step of a table of betas before t, (x + beta score) / sqrt(1 - beta). Its score is amplified by
1 / beta, so its coefficients are float64 whatever the states are. A chain may be respaced after training: ``mu`` still means a
step of the original table, on which the network was trained. ``mu_respaced`` means a step of the respaced chain, as the
published code of guided diffusion takes it.

The velocity is that of x_t along its path, F = alpha' x0 + sigma' epsilon. As alpha' = f alpha, and
g^2 = 2 sigma (sigma' - f sigma) (``sdes.base``), it is f x + (sigma' - f sigma) epsilon = f x - g^2 score / 2, the drift of the
probability-flow ODE. For the straight path, alpha = 1 - t and sigma = t, it is epsilon - x0, and score = -(x + (1 - t) F) / t.

A network's own target follows for every row: where the score is -epsilon / sigma, F = -(a x + epsilon / sigma) / b.

c_in brings the input to unit scale. It is 1/m for ``edm``, and 1/n for all other rows, which is exactly 1 for a
variance-preserving SDE. A network that was trained on x itself takes it as it is.

The network is told the time as c_noise, which is a choice of its own, ``TIME_INPUTS``. Networks of discrete chains count the N
steps of the chain:

    label      (N - 1) t / T       continuous models of the VP family, with N = 1000: from 0 to 999 (Song et al. 2021, code)
    reversed   (N - 1) (1 - t / T) NCSN, whose noise levels fall from the first to the last
    step       N t / T - 1         DDPM's table of betas, whose k-th step (from 0) ends at t = (k + 1) T / N
    rescaled_step                  the same as a share of 1000: 1000 k / N (Nichol and Dhariwal 2021, code)
    nearest_step                   the whole k of the step whose noise level is nearest (Karras et al. 2022, Appendix C.3.4)

A respaced chain has the labels of the original, with its N. Between the steps these are not whole numbers, and a network with a
sinusoidal embedding interpolates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.sdes import SDE, TabulatedSDE


class Coefficients(NamedTuple):
    """a, b and c_in at each time, in the shape of the time."""

    a: Tensor
    b: Tensor
    c_in: Tensor


def _score(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), _unit(alpha, sigma))


def _ncsn(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return Coefficients(torch.zeros_like(sigma), 1 / sigma, _unit(alpha, sigma))


def _epsilon(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return Coefficients(torch.zeros_like(sigma), -1 / sigma, _unit(alpha, sigma))


def _x0(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return Coefficients(-1 / sigma**2, alpha / sigma**2, _unit(alpha, sigma))


def _v(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    c_in = _unit(alpha, sigma)
    return Coefficients(-(c_in**2), -alpha / sigma * c_in**2, c_in)


def _edm(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    c_in = _unit(alpha * sigma_data, sigma)
    return Coefficients(-(c_in**2), alpha * sigma_data / sigma * c_in, c_in)


def _mu(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    if isinstance(sde, TabulatedSDE) and sde.original:
        return _mean_of_step(sde, t.double(), (t.double() - sde.T / len(sde.original)).clamp_min(0))
    return _mu_respaced(sde, t, sigma_data)


def _mu_respaced(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    if not isinstance(sde, TabulatedSDE):
        raise ValueError(f"parameterization mu is the mean of a step of a table of betas, and {type(sde).__name__} has none")
    return _mean_of_step(sde, t.double(), sde.earlier(t.double()))


def _mean_of_step(sde: SDE, t: Tensor, before: Tensor) -> Coefficients:
    log_a = sde.log_alpha(t) - sde.log_alpha(before)
    beta = -torch.expm1(2 * log_a)
    return Coefficients(-1 / beta, log_a.exp() / beta, _unit(sde.alpha(t), sde.sigma(t)))


def _velocity(sde: SDE, t: Tensor, sigma_data: float) -> Coefficients:
    half_rate = sde.diffusion(t) ** 2 / 2
    return Coefficients(sde.drift_coefficient(t) / half_rate, -1 / half_rate, _unit(sde.alpha(t), sde.sigma(t)))


def _unit(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 1 / torch.hypot(alpha, sigma)


PARAMETERIZATIONS: dict[str, Callable[[SDE, Tensor, float], Coefficients]] = {
    "score": _score,
    "epsilon": _epsilon,
    "x0": _x0,
    "v": _v,
    "edm": _edm,
    "ncsn": _ncsn,
    "mu": _mu,
    "mu_respaced": _mu_respaced,
    "velocity": _velocity,
}
"""Name -> function of the SDE, the times ``(B,)`` and sigma_data that gives ``Coefficients``."""


def _step(sde: SDE, t: Tensor, labels: int) -> Tensor:
    label = labels * t / sde.T - 1
    whole = label.round()  # a network may look it up in a table
    return torch.where((label - whole).abs() <= 2 * torch.finfo(label.dtype).eps * labels, whole, label)


def _nearest_step(sde: SDE, t: Tensor, labels: int) -> Tensor:
    ends = torch.arange(labels + 1, dtype=torch.float64, device=t.device) / labels * sde.T
    levels = sde.noise_level(ends)
    borders = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(sde.noise_level(t.double()), borders).to(t.dtype) - 1


TIME_INPUTS: dict[str, Callable[[SDE, Tensor, int], Tensor]] = {
    "label": lambda sde, t, labels: (labels - 1) * t / sde.T,
    "reversed": lambda sde, t, labels: (labels - 1) * (1 - t / sde.T),
    "step": _step,
    "rescaled_step": lambda sde, t, labels: 1000 / labels * _step(sde, t, labels),
    "nearest_step": _nearest_step,
    "time": lambda sde, t, labels: t,
    "sigma": lambda sde, t, labels: sde.sigma(t),
    "log_half_sigma": lambda sde, t, labels: (sde.sigma(t) / 2).log(),
    "log_snr": lambda sde, t, labels: sde.log_snr(t),
    "edm": lambda sde, t, labels: -sde.log_snr(t) / 8,
    "none": lambda sde, t, labels: torch.ones_like(t),
}
"""Name -> function of the SDE, t and the number of labels N that gives c_noise: one of the labels above, t itself, sigma,
ln(sigma / 2), log-SNR, ln(sigma / alpha) / 4, or 1, whose logarithm is 0, for a network that is not told."""
