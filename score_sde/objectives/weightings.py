r"""Weights on the squared error of the noise, as functions of t.

sigma2      w = 1: weight sigma^2 on the score's error (Song et al. 2021; Ho et al. 2020, L_simple)
likelihood  w = g^2 / sigma^2: weight g^2 on it (Song et al. 2021b, Eq. 7); half its integral over t, per
            dimension, bounds the negative log-likelihood up to a constant
edm         w = 1 + sigma^2 / (alpha sigma_data)^2: unit weight on EDM's network output (Karras et al. 2022, Eq. 8:
            lambda = (n^2 + sigma_data^2) / (n sigma_data)^2 on the denoiser's error n^2 || sigma s + epsilon ||^2,
            with the noise level n = sigma / alpha and the score s)
"""

from collections.abc import Callable

from torch import Tensor

from score_sde.model import ScoreModel


def sigma2(model: ScoreModel, t: Tensor) -> Tensor:
    """1."""
    return t.new_ones(t.shape)


def likelihood(model: ScoreModel, t: Tensor) -> Tensor:
    """g^2 / sigma^2."""
    return (model.sde.diffusion(t) / model.sde.sigma(t)) ** 2


def edm(model: ScoreModel, t: Tensor) -> Tensor:
    """1 + sigma^2 / (alpha sigma_data)^2."""
    return 1 + (model.sde.sigma(t) / (model.sde.alpha(t) * model.sigma_data)) ** 2


WEIGHTINGS: dict[str, Callable[[ScoreModel, Tensor], Tensor]] = {"sigma2": sigma2, "likelihood": likelihood, "edm": edm}
"""Name -> weight on the squared error of the noise, ``(B,)``."""
