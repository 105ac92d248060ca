r"""Dequantization: how a density bounds the probability of integers.

A model with density p over model coordinates gives the integer vector k the probability P(k) that p puts on its bin. Drawing
points x_1 ... x_K of that bin from any density q(x | k) on it (Burda et al. 2016, Eq. 8),

    log P(k) >= E log (1/K) sum_j p(x_j) / q(x_j | k),

and the bound rises with K. What is known is the density at t_min, of alpha times the data plus noise of standard deviation
sigma. The choices of q for it:

    uniform            on the bin as the data has it (Theis et al. 2016, Section 3.1), log q = -D log(width). The factor alpha
                       is left out: at t_min it is 1 to many digits.
    truncated_normal   the noise of t_min around the centre c of the bin, cut off at the ends of the bin scaled by alpha (Zheng
                       et al. 2023, Section 4.2): x = alpha c + sigma z, z normal within -tau ... tau with
                       tau = alpha width / (2 sigma), log q = sum log phi(z) - D log(sigma (2 Phi(tau) - 1)). A model of points
                       at the centres has this very density at t_min, and loses nothing.
    variational        a flow trained on the model, see ``variational``.

The density at t_min is not that at 0. Points x0 of some dequantizations lack the noise of t_min. It is added, and taken off
again by a Gaussian around the posterior mean. This bounds the density at 0 (Song et al. 2021b, Appendix B):

    log p_0(x0) >= E [log p(x) + log N(x0; (x + sigma^2 score) / alpha, (sigma / alpha)^2 I) - log N(x; alpha x0, sigma^2 I)],

x = alpha x0 + sigma epsilon. The last two together are sum (epsilon^2 - e^2) / 2 + D log alpha with e = epsilon + sigma score.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.score import Score
from score_sde.sdes import SDE
from score_sde.tensors import Condition, SampleNoise, batch_time, sum_event

Dequantization = Callable[[Tensor, SampleNoise, DataSpec, SDE], tuple[Tensor, Tensor]]
"""Integers ``(B, *D)``, random numbers, the data and the SDE to points in model coordinates ``(B, *D)`` and log q ``(B,)``."""


def uniform(integers: Tensor, noise: SampleNoise, spec: DataSpec, sde: SDE) -> tuple[Tensor, Tensor]:
    """Points uniform on the bins."""
    x = spec.dequantized(integers, noise.uniform())
    return x, torch.full((len(x),), -spec.log_det, dtype=torch.float64, device=x.device)


def truncated_normal(integers: Tensor, noise: SampleNoise, spec: DataSpec, sde: SDE) -> tuple[Tensor, Tensor]:
    """The noise of t_min around the centres of the bins, cut off at their ends."""
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    inside = math.erf(alpha * spec.slope / (2 * sigma) / math.sqrt(2))  # the share of the noise that stays in the bin
    draw = noise.uniform().double().clamp(2**-25, 1 - 2**-25)  # away from the ends, where the inverse is infinite
    signed = (2 * draw - 1) * inside
    z = math.sqrt(2) * torch.erfinv(signed)
    log_q = sum_event(-(z**2) / 2 - math.log(math.sqrt(2 * math.pi) * sigma * inside))
    centre = spec.dequantized(integers.double(), torch.full_like(z, 0.5))
    return (alpha * centre + sigma * z).to(noise.dtype), log_q


def truncation(score: Score, x0: Tensor, noise: SampleNoise, cond: Condition | None) -> tuple[Tensor, Tensor]:
    """Points with the noise of t_min, and what the bound on the density at 0 adds to their log q: one evaluation of the score.

    ``x0`` ``(B, *D)`` in model coordinates; the points ``(B, *D)``, and nats ``(B,)``.
    """
    t = torch.tensor(score.sde.t_min, dtype=torch.float64)
    alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
    epsilon = noise.normal()
    x = alpha * x0 + sigma * epsilon
    with torch.no_grad():
        error = (epsilon + sigma * score(x, batch_time(t, x), cond)).double()
    return x, sum_event(error**2 - epsilon.double() ** 2) / 2 - x0[0].numel() * float(alpha.log())


DEQUANTIZATIONS: dict[str, Dequantization] = {"uniform": uniform, "truncated_normal": truncated_normal}
"""Name -> how integers become points."""
