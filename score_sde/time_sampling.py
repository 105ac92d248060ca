r"""The times of a training batch.

Every rule estimates the same objective: the average of a loss over t uniform in [t_min, T]. A rule gives times, and the weight
(uniform density) / (own density) of each, with which the estimate is unbiased.

The log-SNR rule draws log_snr uniformly and takes t = ``inverse_log_snr(log_snr)``. Since -log_snr' = g^2/sigma^2 for every
linear SDE, its density in t is proportional to g^2/sigma^2, the likelihood weighting itself: that loss then has the same
weight at all times (Song et al. 2021b, Section 5.1; Kingma et al. 2021, Section 5.1).

Stratified draws are one uniform number that is shifted through the batch, u_i = (u + i/B) mod 1 (Kingma et al. 2021,
Appendix I.1). Each is uniform, and together they cover the interval evenly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from score_sde.sdes import SDE


class TimeRule(Protocol):
    """A rule for times. One of your own is a frozen dataclass."""

    def sample(self, sde: SDE, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``batch`` times and their weights, both ``(B,)`` float32, on the generator's device."""
        ...


def unit_interval(batch: int, generator: torch.Generator, *, stratified: bool) -> Tensor:
    """``batch`` numbers uniform in [0, 1), ``(B,)`` float32, spread evenly where they are ``stratified``."""
    draw = torch.rand(1 if stratified else batch, generator=generator, device=generator.device, dtype=torch.float32)
    return (draw + torch.arange(batch, device=generator.device) / batch) % 1 if stratified else draw


@dataclass(frozen=True)
class UniformTimes:
    """t uniform in [t_min, T]."""

    stratified: ClassVar[bool] = False

    def sample(self, sde: SDE, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = sde.t_min + (sde.T - sde.t_min) * unit_interval(batch, generator, stratified=self.stratified)
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class StratifiedTimes(UniformTimes):
    """t uniform in [t_min, T], and those of a batch spread evenly."""

    stratified: ClassVar[bool] = True


@dataclass(frozen=True)
class LogSNRTimes:
    """t such that the log-SNR is uniform: importance sampling for the likelihood weighting.

    Args:
        stratified: whether the times of a batch are spread evenly.
    """

    stratified: bool = True

    def sample(self, sde: SDE, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        low, high = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))
        u = unit_interval(batch, generator, stratified=self.stratified)
        t = sde.inverse_log_snr(low + (high - low) * u).clamp(sde.t_min, sde.T)
        rate = (sde.diffusion(t) / sde.sigma(t)) ** 2
        return t, (high - low) / ((sde.T - sde.t_min) * rate)


TIMES: dict[str, Callable[..., TimeRule]] = {
    "uniform": UniformTimes,
    "stratified": StratifiedTimes,
    "log_snr": LogSNRTimes,
}
"""Name -> rule."""
