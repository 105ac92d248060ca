r"""DEIS (Zhang and Chen 2023): the noise interpolated by a polynomial, the exponential integrated exactly.

With the noise level rho = sigma / alpha, the noise epsilon that the score implies at this and earlier times t_i, and Lagrange's
polynomials l_i,

    x_s = alpha_s / alpha_t x_t + alpha_s sum_i epsilon_i \int l_i drho       from rho_t to rho_s        (Eq. 15 and 16).

The polynomials are taken in t (tAB-DEIS, the paper's choice for image models) or in rho (rhoAB-DEIS, Adams-Bashforth's method
in rho). One node is DDIM.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from score_sde.sdes import SDE
from score_sde.sdes.memory import remembered
from score_sde.solvers.interpolation import lagrange_weights
from score_sde.solvers.level import Level
from score_sde.solvers.multistep import Multistep, MultistepHistory
from score_sde.solvers.time_grids import TimeGrid
from score_sde.tables import require_name

VARIABLES = ("t", "rho")


@dataclass(frozen=True)
class DEIS(Multistep):
    """tAB- or rhoAB-DEIS, one evaluation a step, one more at the start of p = 3.

    Args:
        steps, grid, p, lower_order_first, lower_order_final: as in ``Multistep``.
        variable: ``t`` or ``rho``, that of the polynomials.
    """

    grid: str | TimeGrid = "quadratic"
    p: int = 3
    variable: str = "t"

    noise_prediction: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        require_name("variable", self.variable, VARIABLES)

    def weights(
        self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: MultistepHistory
    ) -> Sequence[float]:
        return _weights(sde, tuple(levels), start, end, self.variable)


@remembered(8192)
def _weights(sde: SDE, levels: tuple[Level, ...], start: Level, end: Level, variable: str) -> tuple[float, ...]:
    kernel = lambda u: -end.alpha * math.e**-u
    ends = start.half_log_snr, end.half_log_snr
    if variable == "rho":
        nodes, of = [level.noise_level for level in levels], lambda u: math.e**-u
    else:
        nodes = [float(level.t) for level in levels]
        of = lambda u: sde.inverse_log_snr(torch.from_numpy(2 * u)).numpy()
    return tuple(lagrange_weights(nodes, *ends, kernel, of).tolist())
