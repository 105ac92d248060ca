r"""The sub-VP SDE (Song et al. 2021, Eq. 12 and Appendix B).

    dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw
    alpha = exp(-B/2),   sigma = 1 - exp(-B) = 1 - alpha^2

Its variance never exceeds the VP SDE's. With r = alpha/sigma = exp(log_snr/2) one has r alpha^2 + alpha - r = 0, so
1/alpha = (1 + sqrt(1 + 4 r^2)) / (2 r), from which B = 2 log(1/alpha) is taken without cancellation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.sdes.vp import LinearBetaSDE
from score_sde.tensors import as_time


@dataclass(frozen=True)
class SubVPSDE(LinearBetaSDE):
    """The sub-VP SDE with a linear beta."""

    def sigma(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(-self.integral(as_time(t)))

    def diffusion(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return (-self.beta(t) * torch.expm1(-2 * self.integral(t))).sqrt()

    def inverse_log_snr(self, log_snr: Tensor | float) -> Tensor:
        twice_ratio = 2 * (as_time(log_snr) / 2).exp()
        root = (1 + twice_ratio**2).sqrt()
        # (1 + root) / (2 r) - 1, with root - 2 r = 1 / (root + 2 r)
        excess = (1 + 1 / (root + twice_ratio)) / twice_ratio
        return self.inverse_integral(2 * torch.log1p(excess))
