r"""Euler-Maruyama on the reverse-time SDE (Song et al. 2021, Eq. 6 and Appendix E).

x_s = x_t + (f x_t - g^2 score) (s - t) + g sqrt(t - s) z
"""

from dataclasses import dataclass
from typing import ClassVar

from score_sde.solvers.base import GridSolver


@dataclass(frozen=True)
class EulerMaruyama(GridSolver):
    """Euler-Maruyama on the reverse-time SDE, one evaluation a step."""

    stochastic: ClassVar[bool] = True

    def step(self, score, x, t, s, noise):
        sde = score.sde
        return x + sde.reverse_drift(x, t, score(x, t)) * (s - t) + sde.diffusion(t) * (t - s).sqrt() * noise.normal()
