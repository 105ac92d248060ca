r"""Reverse diffusion: the reverse-time SDE in the steps of the forward chain (Song et al. 2021, Eq. 45 and 46).

A forward chain x_t = x_s + f(x_s) + G z is reversed by the same f and G, taken at the later state,

    x_s = x_t - f(x_t) + G^2 score(x_t, t) + G z.

For a linear SDE the chain need not be approximate. The transition from s to t > s is

    x_t = a x_s + b z,  a = alpha_t / alpha_s,  b^2 = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - exp(2 (lambda_t - lambda_s))),

with lambda = log(alpha / sigma). The last form loses no digits in a short step, and holds at sigma_s = 0. Hence
f(x) = (a - 1) x, G = b and

    x_s = (2 - a) x_t + b^2 score(x_t, t) + b z,

in which the chains of Song et al. are found again (Appendix E):

    VE    a = 1, b^2 = sigma_t^2 - sigma_s^2                   x_s = x_t + b^2 score + b z
    VP    a = sqrt(1 - beta), b^2 = beta, beta = 1 - a^2       x_s = (2 - sqrt(1 - beta)) x_t + beta score + sqrt(beta) z

As the steps become small this is Euler-Maruyama, of weak order 1. In a large step it is better behaved, since a and b^2 are
integrals over the step, not rates at its beginning.
"""

from dataclasses import dataclass

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import TransitionSolver
from score_sde.transitions import forward_transition


@dataclass(frozen=True)
class ReverseDiffusion(TransitionSolver):
    """The reverse-time SDE in the steps of the forward chain, one evaluation a step.

    Args:
        steps: number of steps.
        grid: time grid.
    """

    def transition(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        a, variance = forward_transition(score.sde, s, t)
        return (2 - a) * x + variance * score(x, t), variance.sqrt()
