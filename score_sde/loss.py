r"""Denoising score matching (Vincent 2011; Song et al. 2021, Eq. 7).

The score of x_t given x_0 is -epsilon / sigma, so a model's score s is judged by

    w(t) || sigma s + epsilon ||^2,

the squared error of the noise that it implies. Weights are functions of t on that error:

    sigma2      w = 1: weight sigma^2 on the score's error (Song et al. 2021; Ho et al. 2020, L_simple)
    likelihood  w = g^2 / sigma^2: weight g^2 on it (Song et al. 2021b, Eq. 7); half its integral over t, per
                dimension, bounds the negative log-likelihood up to a constant
    edm         w = 1 + sigma^2 / (alpha sigma_data)^2: unit weight on EDM's network output (Karras et al. 2022, Eq. 8:
                lambda = (s^2 + sigma_data^2) / (s sigma_data)^2 on the denoiser's error s^2 || sigma s + epsilon ||^2,
                with s = sigma / alpha)
"""

from collections.abc import Callable

from torch import Tensor

from score_sde.model import ScoreModel
from score_sde.tensors import expand, mean_event


def _sigma2(model: ScoreModel, t: Tensor) -> Tensor:
    return t.new_ones(t.shape)


def _likelihood(model: ScoreModel, t: Tensor) -> Tensor:
    return (model.sde.diffusion(t) / model.sde.sigma(t)) ** 2


def _edm(model: ScoreModel, t: Tensor) -> Tensor:
    return 1 + (model.sde.sigma(t) / (model.sde.alpha(t) * model.sigma_data)) ** 2


WEIGHTINGS: dict[str, Callable[[ScoreModel, Tensor], Tensor]] = {
    "sigma2": _sigma2,
    "likelihood": _likelihood,
    "edm": _edm,
}
"""Name -> weight on the squared error of the noise, ``(B,)``."""


def denoising_score_matching(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    epsilon: Tensor,
    *,
    weighting: Callable[[ScoreModel, Tensor], Tensor] = _sigma2,
    cond: Tensor | None = None,
) -> Tensor:
    """The weighted squared error of the noise, averaged over event dimensions: one value per sample, ``(B,)``.

    Args:
        x0: clean data in model coordinates, ``(B, *D)``.
        t: times, ``(B,)``.
        epsilon: standard normal noise, ``(B, *D)``.
        weighting: a value of ``WEIGHTINGS``.
        cond: what the model is conditioned on, ``(B, ...)``.
    """
    score = model(model.sde.perturb(x0, t, epsilon), t, cond)
    error = expand(model.sde.sigma(t), score) * score + epsilon
    return weighting(model, t) * mean_event(error**2)
