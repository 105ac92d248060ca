r"""DDIM (Song, Meng and Ermon 2021, Eq. 12 and 16), for any alpha and sigma.

With the noise epsilon = -sigma_t score implied by the score and x0 = (x - sigma_t epsilon) / alpha_t,

    x_s = alpha_s x0 + sqrt(sigma_s^2 - v) epsilon + sqrt(v) z,
    v   = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2).

At eta = 0 it is deterministic: the Euler step of the probability-flow ODE written for x / alpha as a function of
sigma / alpha, so of order 1, and exact where epsilon is constant. At eta = 1 it draws from the posterior
p(x_s | x_t, x0) of the forward process, which for a DDPM table is ancestral sampling with the smaller variance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import TransitionSolver


@dataclass(frozen=True)
class DDIM(TransitionSolver):
    """DDIM, one evaluation a step.

    Args:
        steps: number of steps.
        grid: time grid.
        eta: 0 for the deterministic sampler, 1 for ancestral noise.
    """

    steps: int = 50
    eta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie between 0 and 1, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def order(self) -> int | None:
        return None if self.stochastic else 1

    def transition(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        sde = score.sde
        alpha_t, sigma_t, alpha_s, sigma_s = sde.alpha(t), sde.sigma(t), sde.alpha(s), sde.sigma(s)
        epsilon = -sigma_t * score(x, t)
        x0 = (x - sigma_t * epsilon) / alpha_t
        if not self.stochastic:
            return alpha_s * x0 + sigma_s * epsilon, torch.zeros_like(sigma_s)
        variance = (self.eta * sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
        return alpha_s * x0 + (sigma_s**2 - variance).sqrt() * epsilon, variance.sqrt()
