r"""Denoising score matching (Vincent 2011; Song et al. 2021, Eq. 7).

The score of x_t given x_0 is -epsilon / sigma, so a model's score s is judged by

    w(t) || sigma s + epsilon ||^2,

the squared error of the noise that it implies. ``score_sde.objectives.weightings`` has the weights w.

At one sigma alone it is Vincent's objective (2011, Eq. 11), times 2 sigma^2 / D in D dimensions. It learns the score of the
data plus noise of this sigma.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.objectives.base import Objective, State, Terms
from score_sde.objectives.weightings import WEIGHTINGS, Sigma2, Weighting
from score_sde.tables import Choice
from score_sde.tensors import Condition, batch_time, expand, mean_event
from score_sde.time_sampling import TIMES, TimeRule


@dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """The weighted squared error of the noise, averaged over event dimensions and over t uniform in [t_min, T].

    A rule for times may have another average of its own (``score_sde.time_sampling``).

    Args:
        weighting: w, a name in ``WEIGHTINGS`` or an object.
        times: where the average over t is sampled, a name in ``TIMES`` or an object.

    Raises:
        OptionError: a name is unknown.
    """

    weighting: Choice[Weighting] = Choice(WEIGHTINGS, "likelihood")
    times: Choice[TimeRule] = Choice(TIMES, "log_snr")

    def begin(self, model: ScoreModel) -> State:
        return self.times.begin(model.sde)

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        t, weight = draws.times(self.times, model.sde, state)
        epsilon = draws.normal("noise", batch.values.shape)
        loss = weight * denoising_score_matching(model, batch.values, t, epsilon, weighting=self.weighting, cond=batch.cond)
        return Terms(loss, times=t, observed={"t": t, "loss": loss} if state else {})

    def learn(self, state: State, observed: Mapping[str, Tensor]) -> State:
        return self.times.learn(state, observed["t"], observed["loss"]) if state else state


@dataclass(frozen=True)
class DenoisingAtSigma(Objective):
    """The squared error of the noise at the sigma of ``FixedNoise``, averaged over event dimensions (Vincent 2011)."""

    one_level: ClassVar[bool] = True

    def check(self, model: ScoreModel) -> None:
        """As ``Objective.check``; there must be noise.

        Raises:
            ValueError: the SDE is not ``FixedNoise``, or its noise is 0.
        """
        super().check(model)
        if not model.sde.sigma(model.sde.T) > 0:
            raise ValueError("denoising needs noise: set the noise of the SDE fixed, or take the objective implicit or sliced")

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        return self.terms(model, batch.values, draws.normal("noise", batch.values.shape), batch.cond)

    def terms(self, model: ScoreModel, x0: Tensor, noise: Tensor, cond: Condition | None = None) -> Terms:
        """The loss with given noise.

        Args:
            model: the model, or any score with its SDE.
            x0: clean data in model coordinates, ``(B, *D)``.
            noise: standard normal noise, ``(B, *D)``.
            cond: what the model is conditioned on.
        """
        t = batch_time(model.sde.T, x0)
        return Terms(denoising_score_matching(model, x0, t, noise, cond=cond))


def denoising_score_matching(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    epsilon: Tensor,
    *,
    weighting: Weighting = Sigma2(),
    cond: Condition | None = None,
) -> Tensor:
    """The weighted squared error of the noise, averaged over event dimensions: one value per sample, ``(B,)``.

    Args:
        model: the model, or any score with its SDE.
        x0: clean data in model coordinates, ``(B, *D)``.
        t: times, ``(B,)``.
        epsilon: standard normal noise, ``(B, *D)``.
        weighting: w, called as ``weighting(model, t)``.
        cond: what the model is conditioned on.
    """
    score = model(model.sde.perturb(x0, t, epsilon), t, cond)
    error = expand(model.sde.sigma(t), score) * score + epsilon
    return weighting(model, t) * mean_event(error**2)
