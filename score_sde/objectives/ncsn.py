r"""Noise-conditional score networks: denoising at discrete levels (Song and Ermon 2019, Eq. 5 and 6; 2020).

The levels are those that the time input ``reversed`` counts: level i of N, from 0 on, is at t = T (1 - i / (N - 1)). Under
``ve`` they fall geometrically from sigma_max to sigma_min, the last at t = 0. Each is weighted by lambda(sigma) = sigma^2,

    sigma^2 || s + epsilon / sigma ||^2 = || sigma s + epsilon ||^2,

here a mean over the D coordinates: 2 / D times the papers' loss. With the parameterization ``ncsn``, s = F / sigma, the network
need not be told the level (Song and Ermon 2020, Technique 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.data import Batch
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.objectives.base import Objective, State, Terms
from score_sde.objectives.denoising import denoising_score_matching
from score_sde.tensors import Condition


@dataclass(frozen=True)
class NCSN(Objective):
    """The squared error of the noise at the levels of NCSN, as many as the model has ``labels``, each drawn as often."""

    def check(self, model: ScoreModel) -> None:
        """As ``Objective.check``; there must be noise at the last level, t = 0.

        Raises:
            ValueError: the SDE has one level of noise, or none at t = 0.
        """
        super().check(model)
        if not model.sde.sigma(0.0) > 0:
            raise ValueError(
                f"the last of NCSN's levels is at t = 0, where {type(model.sde).__name__} has no noise: take the SDE ve, or "
                "the objective denoising or ddpm"
            )

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        level = (draws.uniform("levels", batch.values.shape[:1]) * _count(model)).long()
        return self.terms(model, batch.values, level, draws.normal("noise", batch.values.shape), batch.cond)

    def terms(self, model: ScoreModel, x0: Tensor, level: Tensor, noise: Tensor, cond: Condition | None = None) -> Terms:
        """The loss at given levels, and its part ``mse``: the squared error of the network's own target, a mean as well.

        Args:
            model: the model, or any score with its SDE, whose levels are 1000 and whose target is epsilon.
            x0: data in model coordinates, ``(B, *D)``.
            level: whole numbers ``(B,)``, from 0 at the largest sigma to N - 1.
            noise: standard normal noise, ``(B, *D)``.
            cond: what the model is conditioned on.
        """
        precise = torch.promote_types(x0.dtype, torch.float32)
        t = (model.sde.T * (1 - level.double() / (_count(model) - 1))).to(precise)
        loss = denoising_score_matching(model, x0, t, noise, cond=cond)
        mse = loss / (model.sde.sigma(t) * model.coefficients(t).b) ** 2 if isinstance(model, ScoreModel) else loss
        return Terms(loss, {"mse": mse}, times=t)


def _count(model: ScoreModel) -> int:
    """N."""
    return getattr(model, "labels", 1000)
