r"""Ancestral sampling (Ho et al. 2020, Algorithm 2), for any alpha and sigma.

With the forward transition x_t = a x_s + b z, b^2 being the beta of DDPM, and beta_tilde = b^2 sigma_s^2 / sigma_t^2, the
posterior of x_s given the data is (Ho et al. 2020, Eq. 6 and 7)

    q(x_s | x_t, x0) = N((a sigma_s^2 x_t + alpha_s b^2 x0) / sigma_t^2, beta_tilde I).

The x0 that the score implies, x0 = (x_t + sigma_t^2 score) / alpha_t, makes the mean, as a sigma_s^2 + b^2 / a = sigma_t^2 / a,

    (x_t + b^2 score(x_t, t)) / a.

It remains to choose the variance (Ho et al. 2020, Section 3.2; Nichol and Dhariwal 2021, Eq. 15):

    beta         b^2           the larger one: that of the step where the data is itself N(0, I) under a VP SDE
    beta_tilde   beta_tilde    the smaller one: that of the step where the data is a single point
    learned      Sigma         (B, *D), from the network's second half, by one pass with the score

What is known of them by other names:

    VP    a = sqrt(1 - beta), b^2 = beta      x_s = (x_t + beta score) / sqrt(1 - beta) + ...     DDPM; Song et al. 2021, Eq. 4
    VE    a = 1, b^2 = sigma_t^2 - sigma_s^2  x_s = x_t + (sigma_t^2 - sigma_s^2) score + sqrt(beta_tilde) z
                                                             SMLD's ancestral sampling; Song et al. 2021, Eq. 47
    any   beta_tilde                          DDIM at eta = 1

A step down to the data itself, sigma_s = 0, adds no noise whatever the variance, as DDPM's last one: its mean is x0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import TransitionSolver
from score_sde.tables import require_name
from score_sde.transitions import VARIANCES, forward_transition, variance_ends


@dataclass(frozen=True)
class Ancestral(TransitionSolver):
    """Ancestral sampling, one evaluation a step.

    With a table of N betas, and the grid that ends at T / N after N - 1 steps (or at 0 after N), the betas of the steps are the
    table's. On a respaced chain, take the list of its times, ``ExplicitGrid(tuple(sde.nodes().flip(0).tolist()))``.

    With ``beta`` a sample keeps the noise of its last step, whose variance is about sigma^2 where that step began, not where it
    ended: end on small steps (``grid="log_snr"``), or where ``denoise`` takes the last one.

    Args:
        steps: number of steps.
        grid: time grid.
        variance: ``beta_tilde``, ``beta``, or ``learned`` where the score has a method ``score_and_variance``, as a
            ``ScoreModel`` whose network has ``learned_variance``; solving raises a ``TypeError`` for any other score.
    """

    variance: str = "beta_tilde"

    def __post_init__(self):
        super().__post_init__()
        require_name("variance", self.variance, VARIANCES)

    def transition(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        sde = score.sde
        a, beta = forward_transition(sde, s, t)
        v, shrinkage = VARIANCES[self.variance], sde.sigma(s) / sde.sigma(t)
        if v is None and shrinkage > 0:
            gradient, log_variance = score.score_and_variance(x, t, variance_ends(sde, s, t))
            return (x + beta * gradient) / a, (log_variance / 2).exp()
        mean = (x + beta * score(x, t)) / a
        if v is None or shrinkage == 0:
            return mean, torch.zeros_like(beta)
        return mean, beta.sqrt() * shrinkage ** (1 - v)
