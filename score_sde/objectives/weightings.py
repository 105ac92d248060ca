r"""Weights on the squared error of the noise, as functions of t.

sigma2      w = 1: weight sigma^2 on the score's error (Song et al. 2021; Ho et al. 2020, L_simple)
likelihood  w = g^2 / sigma^2: weight g^2 on it (Song et al. 2021b, Eq. 7); half its integral over t, per
            dimension, bounds the negative log-likelihood up to a constant
edm         w = 1 + sigma^2 / (alpha sigma_data)^2: unit weight on EDM's network output (Karras et al. 2022, Eq. 8:
            lambda = (n^2 + sigma_data^2) / (n sigma_data)^2 on the denoiser's error n^2 || sigma s + epsilon ||^2,
            with the noise level n = sigma / alpha and the score s)
velocity    w = (g^2 / (2 sigma))^2: unit weight on the velocity f x - g^2 s / 2 (Lipman et al. 2023, Eq. 14); 1 / alpha^2
            for the straight path
min_snr     w = min(1, gamma sigma^2 / alpha^2): weight min(alpha^2 / sigma^2, gamma) on the data's error, which is
            (sigma / alpha)^2 of the noise's (Hang et al. 2023, Section 3.4)
sigmoid     w = sigmoid(bias - log_snr) g^2 / sigma^2: weight sigmoid(bias - log_snr) on the noise's error per unit of
            log-SNR (Kingma and Gao 2023; Hoogeboom et al. 2024)

The measure. Here losses are averaged over t. Papers on the bound weight the error per unit of log-SNR instead: half the
integral of w(log_snr) || sigma s + epsilon ||^2 over log-SNR, where w = 1 is the bound. As d log_snr = -(g^2 / sigma^2) dt,
such a weight becomes w g^2 / sigma^2 here, up to the constant T - t_min. Such a loss depends on the schedule through its ends
alone (Kingma et al. 2021, Section 5.1). ``sigma2`` and ``min_snr`` are published for t uniform under a schedule, ``edm`` for
the times ``log_normal`` without their weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.model import ScoreModel


class Weighting(Protocol):
    """A weight on the squared error of the noise. One of your own is a frozen dataclass, or a function."""

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        """The weights at the times ``t``, both ``(B,)``; ``model`` is the model, or any score with its SDE."""
        ...


@dataclass(frozen=True)
class Sigma2:
    """1."""

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return t.new_ones(t.shape)


@dataclass(frozen=True)
class Likelihood:
    """g^2 / sigma^2."""

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return (model.sde.diffusion(t) / model.sde.sigma(t)) ** 2


@dataclass(frozen=True)
class EDM:
    """1 + sigma^2 / (alpha sigma_data)^2."""

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return 1 + (model.sde.sigma(t) / (model.sde.alpha(t) * model.sigma_data)) ** 2


@dataclass(frozen=True)
class Velocity:
    """(g^2 / (2 sigma))^2, which is (sigma d log(sigma / alpha) / dt)^2."""

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return (model.sde.diffusion(t) ** 2 / (2 * model.sde.sigma(t))) ** 2


@dataclass(frozen=True)
class MinSNR:
    """min(1, gamma sigma^2 / alpha^2).

    Args:
        gamma: the signal-to-noise ratio above which errors of the data are not weighted more.

    Raises:
        ValueError: ``gamma`` is not positive.
    """

    gamma: float = 5.0

    def __post_init__(self):
        require_finite({"gamma": self.gamma})
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return (self.gamma * model.sde.noise_level(t) ** 2).clamp_max(1)


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - log_snr) g^2 / sigma^2.

    Args:
        bias: the log-SNR above which the weight falls, like 1 / SNR.

    Raises:
        ValueError: ``bias`` is not finite.
    """

    bias: float = 2.0

    def __post_init__(self):
        require_finite({"bias": self.bias})

    def __call__(self, model: ScoreModel, t: Tensor) -> Tensor:
        return (self.bias - model.sde.log_snr(t)).sigmoid() * Likelihood()(model, t)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "sigma2": Sigma2,
    "likelihood": Likelihood,
    "edm": EDM,
    "velocity": Velocity,
    "min_snr": MinSNR,
    "sigmoid": Sigmoid,
}
"""Name -> weighting."""
