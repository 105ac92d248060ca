r"""The times of a training batch.

Every rule estimates the same objective: the average of a loss over t uniform in [t_min, T]. A rule gives times, and the weight
(uniform density) / (own density) of each, with which the estimate is unbiased. It makes them of numbers u uniform in [0, 1) by
the inverse of its distribution function, its warp, so that the weight is |dt/du| / (T - t_min).

The log-SNR falls at the rate r = -log_snr' = g^2 / sigma^2 for every linear SDE. So a density p over log-SNR is the density
p r in t, and its weight is 1 / ((T - t_min) p r).

log_snr       p constant. The density in t is proportional to g^2 / sigma^2, the likelihood weighting itself: that loss then has
              the same weight at all times (Song et al. 2021b, Section 5.1; Kingma et al. 2021, Section 5.1).
log_normal    log(sigma / alpha) = -log_snr / 2 is normal (Karras et al. 2022, Table 1)
logit_normal  log(t / (T - t)) is normal (Esser et al. 2024, Section 3.1)
adaptive      p in proportion to the root mean square of the loss (below)

The two normal rules are cut at t_min and T, and normalized there. Their authors train without weights: their density is then a
part of the objective. ``weighted=False`` does so.

The variance of the estimate. Per unit of log-SNR the loss is X = w L / ((T - t_min) r), and the objective is the integral of
E[X | log_snr]. A draw from p estimates it by X / p, whose second moment is the integral of E[X^2 | log_snr] / p. By
Cauchy-Schwarz it is least where p is proportional to sqrt(E[X^2 | log_snr]). The noise schedule of Kingma et al. (2021,
Appendix I) is trained by gradients to make the same variance small. Here p is learned from the losses that were seen. It is
constant in each of K bins of log-SNR, where the best one is proportional to the root of the mean of X^2 over the bin. As the
times of a bin are uniform in log-SNR, the plain mean over the samples seen there estimates that. p does not change while a
batch is drawn, and each bin keeps a least probability, so that the weights stay exact and bounded.

Stratified draws are one uniform number that is shifted through the batch, u_i = (u + i/B) mod 1 (Kingma et al. 2021,
Appendix I.1). Each is uniform, and together they cover the interval evenly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from score_sde.inputs import require_finite, whole
from score_sde.sdes import SDE
from score_sde.tensors import State


@dataclass(frozen=True)
class TimeRule(ABC):
    """A rule for times. One of your own is a frozen dataclass that extends it.

    Args:
        stratified: whether the times of a batch are spread evenly.
    """

    stratified: bool = field(default=True, kw_only=True)

    @abstractmethod
    def warp(self, sde: SDE, u: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The times and weights, both ``(B,)``, of numbers ``u`` ``(B,)`` in [0, 1), in their dtype.

        Args:
            sde: the forward SDE.
            u: the numbers.
            state: what is known; it is not changed.
        """

    def sample(self, sde: SDE, batch: int, generator: torch.Generator, state: State | None = None) -> tuple[Tensor, Tensor]:
        """``batch`` times and their weights, both ``(B,)`` float32, on the generator's device.

        ``state`` is what is known, by default what is known before training.
        """
        u = unit_interval(batch, generator, stratified=self.stratified)
        known = self.begin(sde) if state is None else state
        return self.warp(sde, u, {name: value.to(u.device) for name, value in known.items()})

    def begin(self, sde: SDE) -> State:
        """What is known before training: nothing, by default."""
        return {}

    def learn(self, state: State, t: Tensor, loss: Tensor) -> State:
        """What is known after a step of training; by default what was known before.

        Args:
            state: what was known before; it is not changed.
            t: times that were drawn by it, ``(B,)``.
            loss: the loss at each, times its weight, ``(B,)``.
        """
        return state


def unit_interval(batch: int, generator: torch.Generator, *, stratified: bool) -> Tensor:
    """``batch`` numbers uniform in [0, 1), ``(B,)`` float32, spread evenly where they are ``stratified``."""
    draw = torch.rand(1 if stratified else batch, generator=generator, device=generator.device, dtype=torch.float32)
    return (draw + torch.arange(batch, device=generator.device) / batch) % 1 if stratified else draw


@dataclass(frozen=True)
class UniformTimes(TimeRule):
    """t uniform in [t_min, T]."""

    stratified: bool = field(default=False, init=False, repr=False)

    def warp(self, sde: SDE, u: Tensor, state: State) -> tuple[Tensor, Tensor]:
        t = sde.t_min + (sde.T - sde.t_min) * u
        return t, torch.ones_like(t)


@dataclass(frozen=True)
class StratifiedTimes(UniformTimes):
    """t uniform in [t_min, T], and those of a batch spread evenly."""

    stratified: bool = field(default=True, init=False, repr=False)


@dataclass(frozen=True)
class LogSNRTimes(TimeRule):
    """t such that the log-SNR is uniform: importance sampling for the likelihood weighting.

    Args:
        stratified: whether the times of a batch are spread evenly.
    """

    def warp(self, sde: SDE, u: Tensor, state: State) -> tuple[Tensor, Tensor]:
        low, high = _log_snr_ends(sde)
        t = sde.inverse_log_snr(low + (high - low) * u).clamp(sde.t_min, sde.T)
        return t, (high - low) / ((sde.T - sde.t_min) * _rate(sde, t))


@dataclass(frozen=True)
class NormalTimes(TimeRule):
    """t such that a function of it is normal, within [t_min, T].

    Args:
        mean: of the normal distribution.
        std: its standard deviation.
        weighted: whether the objective stays the average over uniform t; else it is the average over these times.
        stratified: whether the times of a batch are spread evenly.

    Raises:
        ValueError: an option is not finite, or ``std`` not positive; in ``warp``, hardly any of the distribution is within
            [t_min, T].
    """

    mean: float
    std: float
    weighted: bool = True

    def __post_init__(self):
        require_finite({"mean": self.mean, "std": self.std})
        if not self.std > 0:
            raise ValueError(f"std must be positive, got {self.std}")

    @abstractmethod
    def ends(self, sde: SDE) -> tuple[float, float]:
        """The function at t_min and at T."""

    @abstractmethod
    def inverse(self, sde: SDE, value: Tensor) -> tuple[Tensor, Tensor]:
        """The times at which the function has these values, and its slopes there."""

    def warp(self, sde: SDE, u: Tensor, state: State) -> tuple[Tensor, Tensor]:
        low, high = ((end - self.mean) / self.std for end in self.ends(sde))
        below, within = _normal_cdf(low), _normal_cdf(high) - _normal_cdf(low)
        if within < 1e-6:
            raise ValueError(
                f"mean {self.mean:g} and std {self.std:g} leave a share of {within:.1g} between t_min and T, "
                f"which are {low:.3g} and {high:.3g} standard deviations from the mean: choose a mean between them"
            )
        z = torch.special.ndtri(below + within * u.double()).clamp(low, high)  # float32 has no digits left in the upper tail
        t, slope = self.inverse(sde, self.mean + self.std * z)
        density = torch.exp(-(z**2) / 2) / (math.sqrt(2 * math.pi) * self.std * within) * slope
        weight = 1 / ((sde.T - sde.t_min) * density) if self.weighted else torch.ones_like(t)
        return t.to(u).clamp(sde.t_min, sde.T), weight.to(u)


@dataclass(frozen=True)
class LogNormalTimes(NormalTimes):
    """t such that log(sigma / alpha), the logarithm of the noise level, is normal."""

    mean: float = -1.2
    std: float = 1.2

    def ends(self, sde: SDE) -> tuple[float, float]:
        low, high = _log_snr_ends(sde)
        return -high / 2, -low / 2

    def inverse(self, sde: SDE, value: Tensor) -> tuple[Tensor, Tensor]:
        t = sde.inverse_log_snr(-2 * value)
        return t, _rate(sde, t) / 2


@dataclass(frozen=True)
class LogitNormalTimes(NormalTimes):
    """t such that log(t / (T - t)) is normal."""

    mean: float = 0.0
    std: float = 1.0

    def ends(self, sde: SDE) -> tuple[float, float]:
        return math.log(sde.t_min / (sde.T - sde.t_min)), math.inf

    def inverse(self, sde: SDE, value: Tensor) -> tuple[Tensor, Tensor]:
        share = value.sigmoid()
        return sde.T * share, 1 / (sde.T * share * (-value).sigmoid())


@dataclass(frozen=True)
class AdaptiveTimes(TimeRule):
    """t such that the density over log-SNR follows the root mean square of the loss; constant before any is known.

    Args:
        bins: K, the bins of equal length in log-SNR.
        history: the mean square of a bin is one over about so many samples, the last ones.
        floor: the share of the density that is constant, so that no bin is forgotten.
        stratified: whether the times of a batch are spread evenly.

    Raises:
        ValueError: ``bins`` or ``history`` is not positive, or ``floor`` is outside (0, 1].
    """

    bins: int = 64
    history: int = 200
    floor: float = 0.05

    def __post_init__(self):
        whole("bins", self.bins, 1)
        whole("history", self.history, 1)
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be above 0 and at most 1, got {self.floor}")

    def begin(self, sde: SDE) -> State:
        """The times between bins, and of each bin the sum of squares and how many samples it is of, all float64."""
        low, high = _log_snr_ends(sde)
        values = torch.linspace(high, low, self.bins + 1, dtype=torch.float64, device="cpu")
        nothing = torch.zeros(self.bins, dtype=torch.float64, device="cpu")
        return {"times": sde.inverse_log_snr(values[1:-1]), "squares": nothing, "counts": nothing.clone()}

    def probabilities(self, state: State) -> Tensor:
        """The probability of each bin, ``(K,)``, float64, from the first times to the last.

        A sample of a bin d bins away counts as 4^-d samples. So a bin that has none takes after those beside it.
        """
        places = torch.arange(self.bins, device=state["counts"].device)
        near = 4.0 ** -(places - places[:, None]).abs().double()
        tiny = torch.finfo(torch.float64).tiny  # where nothing is known, or no loss is left, all are alike
        root = (near @ state["squares"] / (near @ state["counts"] + tiny) + tiny).sqrt()
        return (1 - self.floor) * root / root.sum() + self.floor / self.bins

    def warp(self, sde: SDE, u: Tensor, state: State) -> tuple[Tensor, Tensor]:
        low, high = _log_snr_ends(sde)
        p = self.probabilities(state)
        above = p.cumsum(0)
        bin_ = torch.searchsorted(above, u.double(), right=True).clamp_max(self.bins - 1)
        p = p[bin_]
        within = (1 - (above[bin_] - u) / p).clamp(0, 1)
        t = sde.inverse_log_snr((high - (high - low) * (bin_ + within) / self.bins).to(u)).clamp(sde.t_min, sde.T)
        return t, ((high - low) / (self.bins * p)).to(u) / ((sde.T - sde.t_min) * _rate(sde, t))

    def learn(self, state: State, t: Tensor, loss: Tensor) -> State:
        bin_ = torch.searchsorted(state["times"], t.double(), right=True)
        squares = (loss.double() * self.bins * self.probabilities(state)[bin_]) ** 2
        hits = bin_[:, None] == torch.arange(self.bins, device=t.device)
        squares = state["squares"] + torch.where(hits, squares[:, None], 0).sum(0)
        counts = state["counts"] + hits.sum(0)
        kept = counts.clamp_max(self.history)
        return {**state, "squares": squares * kept / counts.clamp_min(1), "counts": kept}


def _log_snr_ends(sde: SDE) -> tuple[float, float]:
    """The log-SNR at T and at t_min."""
    return float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))


def _rate(sde: SDE, t: Tensor) -> Tensor:
    """How fast the log-SNR falls."""
    return (sde.diffusion(t) / sde.sigma(t)) ** 2


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


TIMES: dict[str, Callable[..., TimeRule]] = {
    "uniform": UniformTimes,
    "stratified": StratifiedTimes,
    "log_snr": LogSNRTimes,
    "log_normal": LogNormalTimes,
    "logit_normal": LogitNormalTimes,
    "adaptive": AdaptiveTimes,
}
"""Name -> rule."""
