r"""Weights on the squared error of the noise, as functions of t.

sigma2      w = 1: weight sigma^2 on the score's error (Song et al. 2021; Ho et al. 2020, L_simple)
likelihood  w = g^2 / sigma^2: weight g^2 on it (Song et al. 2021b, Eq. 7); half its integral over t, per
            dimension, bounds the negative log-likelihood up to a constant
edm         w = 1 + sigma^2 / (alpha sigma_data)^2: unit weight on EDM's network output (Karras et al. 2022, Eq. 8:
            lambda = (n^2 + sigma_data^2) / (n sigma_data)^2 on the denoiser's error n^2 || sigma s + epsilon ||^2,
            with the noise level n = sigma / alpha and the score s)
velocity    w = (g^2 / (2 sigma))^2: unit weight on the velocity f x - g^2 s / 2 (Lipman et al. 2023, Eq. 14); 1 / alpha^2
            for the straight path
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"sigma2": Sigma2, "likelihood": Likelihood, "edm": EDM, "velocity": Velocity}
"""Name -> weighting."""
