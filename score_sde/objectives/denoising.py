r"""Denoising score matching (Vincent 2011; Song et al. 2021, Eq. 7).

The score of x_t given x_0 is -epsilon / sigma, so a model's score s is judged by

    w(t) || sigma s + epsilon ||^2,

the squared error of the noise that it implies. ``score_sde.objectives.weightings`` has the weights w.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.objectives.base import Objective, State, Terms
from score_sde.objectives.weightings import WEIGHTINGS, sigma2
from score_sde.tables import build, require_name
from score_sde.tensors import expand, mean_event
from score_sde.time_sampling import TIMES


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """The weighted squared error of the noise, averaged over event dimensions and over t uniform in [t_min, T].

    Args:
        weighting: ``sigma2``, ``likelihood`` or ``edm``.
        times: ``uniform``, ``stratified`` or ``log_snr``: where the average over t is sampled.

    Raises:
        ValueError: a name is unknown.
    """

    weighting: str = "likelihood"
    times: str = "log_snr"

    def __post_init__(self):
        for name, table in (("weighting", WEIGHTINGS), ("times", TIMES)):
            require_name(name, getattr(self, name), table)

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        t, weight = draws.times(build(TIMES, self.times, kind="times"), model.sde)
        epsilon = draws.normal("noise", batch.values.shape)
        weighting = WEIGHTINGS[self.weighting]
        loss = denoising_score_matching(model, batch.values, t, epsilon, weighting=weighting, cond=batch.cond)
        return Terms(weight * loss, times=t)


def denoising_score_matching(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    epsilon: Tensor,
    *,
    weighting: Callable[[ScoreModel, Tensor], Tensor] = sigma2,
    cond: Tensor | None = None,
) -> Tensor:
    """The weighted squared error of the noise, averaged over event dimensions: one value per sample, ``(B,)``.

    Args:
        model: the model, or any score with its SDE.
        x0: clean data in model coordinates, ``(B, *D)``.
        t: times, ``(B,)``.
        epsilon: standard normal noise, ``(B, *D)``.
        weighting: a value of ``WEIGHTINGS``.
        cond: what the model is conditioned on, ``(B, ...)``.
    """
    score = model(model.sde.perturb(x0, t, epsilon), t, cond)
    error = expand(model.sde.sigma(t), score) * score + epsilon
    return weighting(model, t) * mean_event(error**2)
