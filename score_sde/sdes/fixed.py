r"""One level of noise, in place of all: what score matching without noise levels learns at (Hyvärinen 2005; Vincent 2011).

    x = x0 + sigma epsilon,      alpha = 1,   sigma the same at every t,   f = g = 0

Nothing happens in time: the density of x is at every t that of the data plus noise of one sigma, or of the data itself where
sigma is 0. The log-SNR does not fall, so there is no way from noise to data. Langevin dynamics needs none.
"""

import math
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.sdes.base import SDE
from score_sde.tensors import as_time


@dataclass(frozen=True)
class FixedNoise(SDE):
    """The same noise at all times.

    The solver ``langevin`` takes it. Everything that goes from noise to data refuses it. The time means nothing.

    Args:
        noise: sigma, in model coordinates; 0 for the data itself.

    Raises:
        ValueError: ``noise`` is negative or not finite.
    """

    noise: float = 0.0
    T: float = field(default=1.0, init=False, repr=False)
    t_min: float = field(default=1e-5, init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        require_finite({"noise": self.noise})
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.full_like(as_time(t), self.noise)

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(as_time(t))

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(as_time(t))

    def inverse_log_snr(self, log_snr: Tensor | float) -> NoReturn:
        self.require_ends()

    def require_ends(self) -> NoReturn:
        raise ValueError(
            f"the SDE fixed has one level of noise, {self.noise:g}, and nothing leads from noise to data: of the solvers "
            "langevin alone takes it, and there is no likelihood; train with another SDE for these"
        )

    @property
    def prior_std(self) -> Tensor:
        """Wide beside data of unit scale: Langevin dynamics starts there, and forgets it."""
        return torch.tensor(math.hypot(1.0, self.noise), dtype=torch.float64, device="cpu")
