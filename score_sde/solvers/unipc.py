r"""UniPC (Zhao et al. 2023): a predictor of order p and a corrector that raises it to p + 1, at one evaluation a step.

With h = lambda_s - lambda_t, and the differences D_k = (x0_k - x0_t) / r_k of the values at earlier times from the one at
hand, r_k = (lambda_k - lambda_t) / h, Algorithms 5 and 6 write a step for x0 as

    x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) x0_t - alpha_s B(h) sum_k a_k D_k,

where the coefficients make it exact to as many powers of h as there are differences (Eq. 5 and 7, for x0 with -h in place of
h):

    sum_k r_k^(n-1) a_k = n! phi_{n+1}(-h) (-h) / B,   n = 1, 2, ...,    phi_{n+1}(z) = (phi_n(z) - 1 / n!) / z,  phi_0 = exp.

B is -h (``bh1``) or e^-h - 1 (``bh2``). The corrector has the value at the end of the step, r = 1, among its differences. With
a single difference the condition is met by a = 1/2 to the order that is needed, and that is what is taken. With more of them B
cancels, so that the two variants differ only in steps with a single difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from score_sde.sdes import SDE
from score_sde.solvers.level import Level
from score_sde.solvers.multistep import Multistep, MultistepHistory
from score_sde.tables import require_name

VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC-p, of order p + 1; one evaluation a step, two more at the start of p = 3.

    Args:
        steps, grid, p, lower_order_first, lower_order_final: as in ``Multistep``.
        variant: ``bh1`` or ``bh2``.
    """

    variant: str = "bh2"

    corrected: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        require_name("variant", self.variant, VARIANTS)

    def weights(
        self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: MultistepHistory
    ) -> Sequence[float]:
        nodes = tuple(level.half_log_snr for level in levels)
        return _weights(nodes, nodes.index(start.half_log_snr), end.half_log_snr, end.alpha, self.variant)


@lru_cache(maxsize=8192)
def _weights(nodes: tuple[float, ...], here: int, end: float, alpha: float, variant: str) -> tuple[float, ...]:
    """The weights of the values at ``nodes``, log-SNRs, in a step from the one at the index ``here`` to ``end``."""
    h = end - nodes[here]
    ratios = (np.delete(nodes, here) - nodes[here]) / h
    of_differences = -alpha * _coefficients(ratios, h, variant) / ratios
    own = -alpha * math.expm1(-h) - of_differences.sum()
    return tuple(np.insert(of_differences, here, own).tolist())


def _coefficients(ratios: np.ndarray, h: float, variant: str) -> np.ndarray:
    """B(h) a_k of the differences at ``ratios``."""
    if len(ratios) == 1:
        return np.array([(-h if variant == "bh1" else math.expm1(-h)) / 2])
    moments = np.array([math.factorial(n + 1) * _phi(n + 2, -h) * -h for n in range(len(ratios))])
    return np.linalg.solve(ratios[None, :] ** np.arange(len(ratios))[:, None], moments)


def _phi(n: int, z: float) -> float:
    """phi_n(z): its power series where the recursion would cancel."""
    if abs(z) < 1:
        return sum(z**k / math.factorial(k + n) for k in range(20))
    value = math.exp(z)
    for k in range(n):
        value = (value - 1 / math.factorial(k)) / z
    return value
