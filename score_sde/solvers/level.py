"""What an SDE says at a time, as numbers: computed once for each time, whatever the number of batches."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from score_sde.sdes import SDE
from score_sde.sdes.memory import remembered
from score_sde.tensors import as_time


class Level(NamedTuple):
    """A time with alpha, sigma and half of the log-SNR there, as numbers."""

    t: Tensor
    alpha: float
    sigma: float
    half_log_snr: float

    @property
    def noise_level(self) -> float:
        """sigma / alpha."""
        return self.sigma / self.alpha

    @classmethod
    def at(cls, sde: SDE, t: Tensor) -> Self:
        """The level of ``sde`` at the 0-dimensional time ``t``: the same object for the same time, batch after batch."""
        return _level(sde, float(t))

    @classmethod
    def between(cls, sde: SDE, start: "Level", end: "Level", fraction: float) -> Self:
        """The level at ``fraction`` of the way from one to another in log-SNR."""
        log_snr = 2 * (start.half_log_snr + fraction * (end.half_log_snr - start.half_log_snr))
        return cls.at(sde, sde.inverse_log_snr(log_snr))


@remembered(8192)
def _level(sde: SDE, t: float) -> Level:
    with torch.inference_mode(False):
        time = as_time(t)
    return Level(time, float(sde.alpha(time)), float(sde.sigma(time)), float(sde.log_snr(time)) / 2)
