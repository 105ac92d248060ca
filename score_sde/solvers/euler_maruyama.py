r"""Euler-Maruyama on the reverse-time SDE (Song et al. 2021, Eq. 6 and Appendix E).

x_s = x_t + (f x_t - g^2 score) (s - t) + g sqrt(t - s) z
"""

from dataclasses import dataclass

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.solvers.fixed_steps import TransitionSolver


@dataclass(frozen=True)
class EulerMaruyama(TransitionSolver):
    """Euler-Maruyama on the reverse-time SDE, one evaluation a step."""

    def transition(self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        sde = score.sde
        return x + sde.reverse_drift(x, t, score(x, t)) * (s - t), sde.diffusion(t) * (t - s).sqrt()
