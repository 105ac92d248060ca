r"""A variational bound on the negative log-likelihood of integers in continuous time.

As the steps of a chain (``chain``) become small, its bound tends to an integral over the log-SNR alone (Kingma et al. 2021,
Section 5.1),

    KL(q(x_T | x0) || prior) + 1/2 \int_{lambda_T}^{lambda_{t_min}} E ||e||^2 dlambda - log p(x0 | x_{t_min}),

with e = epsilon + sigma score, where p(x0 | x) is, coordinate by coordinate, proportional to N(x; alpha x0, sigma^2) over the
levels (ibid., Section 3).
"""

import math

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.inputs import whole
from score_sde.likelihood.bounds import Batch, Terms, estimate_bound
from score_sde.likelihood.record import VariationalBound
from score_sde.score import Score
from score_sde.tensors import Condition, sum_event, total


def continuous_bound(
    model: Score,
    values: Tensor,
    *,
    times: int = 100,
    draws: int = 1,
    data: DataSpec | None = None,
    cond: Condition | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> VariationalBound:
    """The bound in continuous time on the negative log-likelihood of ``values``, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: integers from 0 to levels - 1, ``(N, *D)``.
        times: evaluations per sample and draw, one at random in each of as many equal parts of the log-SNR's range.
        draws, data, cond, batch_size, seed, progress: as for ``discrete_bound``. So are the errors.
    """
    whole("times", times, 1)
    sde = model.sde
    sde.require_ends()
    low, high = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))

    def draw(batch: Batch) -> tuple[Tensor, Tensor]:
        t = sde.inverse_log_snr(low + (high - low) * batch.stratified()).clamp(sde.t_min, sde.T)
        squares = total(sum_event(batch.error(column)[0] ** 2) for column in t.unbind(1))
        return (high - low) / 2 * squares / times, _level_surprisal(batch, sde.t_min)

    terms = Terms(draw, "continuous", times, sde.t_min, sde.T)
    return estimate_bound(
        model, values, terms, draws=draws, data=data, cond=cond, batch_size=batch_size, seed=seed, progress=progress
    )


def _level_surprisal(batch: Batch, t: float) -> Tensor:
    """-log p(x0 | x_t) in nats, ``(B,)``, where p is proportional to N(x_t; alpha x0, sigma^2) over the levels.

    A level that lies j bins away has, with c = alpha width / sigma, exp(c j (epsilon - c j / 2)) times the weight of x0's.
    """
    sde, epsilon = batch.score.sde, batch.noise.normal().double()
    c = float(sde.alpha(t) / sde.sigma(t)) * batch.data.slope
    total = torch.full_like(epsilon, -math.inf)
    for level in range(batch.data.bins):
        shift = c * (level - batch.integers)
        total = torch.logaddexp(total, shift * (epsilon - shift / 2))
    return sum_event(total)
