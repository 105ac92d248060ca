r"""A variance-preserving SDE that is given by its log-SNR at a few times (Kingma et al. 2021, Section 3.2).

With lambda(t) the log-SNR, which falls, and alpha^2 + sigma^2 = 1,

    alpha^2 = sigmoid(lambda),   sigma^2 = sigmoid(-lambda),   f = lambda' sigma^2 / 2,   g^2 = -lambda' sigma^2.

Between the times lambda is a monotone cubic, which does not stand still at its ends. Its slope bends at the times: a method of
order 3 or more in t reaches its order where its steps end there. At t = 0 lambda is finite, and the data has a little noise.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import softplus

from score_sde.inputs import require_finite
from score_sde.sdes.base import SDE
from score_sde.sdes.cubic import Cubic, monotone_cubic
from score_sde.sdes.memory import remembered
from score_sde.tensors import as_time


@dataclass(frozen=True)
class LogSNRSDE(SDE):
    """The variance-preserving SDE through these values of the log-SNR.

    Args:
        times: rising, from 0 to T, two or more.
        log_snrs: 2 log(alpha / sigma) at each of them, falling. The default is one straight line: the likelihood weighting is
            then the same at all times.
    """

    times: tuple[float, ...] = (0.0, 1.0)
    log_snrs: tuple[float, ...] = (14.0, -10.0)

    def __post_init__(self):
        for name in ("times", "log_snrs"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            require_finite({f"{name}[{i}]": value for i, value in enumerate(getattr(self, name))})
        super().__post_init__()
        if len(self.times) != len(self.log_snrs) or len(self.times) < 2:
            raise ValueError(f"need a log_snr for each of two or more times, got {len(self.log_snrs)} for {len(self.times)}")
        if self.times[0] != 0 or self.times[-1] != self.T or any(s >= t for s, t in pairwise(self.times)):
            raise ValueError(f"times must rise from 0 to T = {self.T:g}, got {list(self.times)}")
        if any(early <= late for early, late in pairwise(self.log_snrs)):
            raise ValueError(f"log_snrs must fall, got {list(self.log_snrs)}")

    def log_snr(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return _curve(self, t.dtype, t.device).value(t)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return -softplus(-self.log_snr(t)) / 2

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.log_snr(t).sigmoid().sqrt()

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-self.log_snr(t)).sigmoid().sqrt()

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        return -self._beta(as_time(t)) / 2

    def diffusion(self, t: Tensor | float) -> Tensor:
        return self._beta(as_time(t)).sqrt()

    def _beta(self, t: Tensor) -> Tensor:
        curve = _curve(self, t.dtype, t.device)
        return -curve.slope(t) * (-curve.value(t)).sigmoid()


@remembered(16)
def _curve(sde: LogSNRSDE, dtype: torch.dtype, device: torch.device) -> Cubic:
    return monotone_cubic(sde.times, sde.log_snrs, dtype, device, least=1 / 3)
