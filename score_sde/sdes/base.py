r"""Forward SDEs with a known Gaussian transition.

    dx = f(t) x dt + g(t) dw,   t = 0 data, t = T noise
    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I)

The mean and the variance of a linear SDE obey (Särkkä and Solin 2019, Eq. 5.50 and 5.51)

    alpha' = f alpha          =>   f   = (log alpha)'
    (sigma^2)' = 2 f sigma^2 + g^2   =>   g^2 = (sigma^2)' - 2 f sigma^2 = 2 sigma (sigma' - f sigma)

so either pair gives the other: a subclass writes ``alpha`` and ``sigma`` (and f and g follow by autograd, unless it
also writes them in closed form), or ``drift`` and ``diffusion`` (and alpha and sigma follow by quadrature). The log
signal-to-noise ratio log_snr = 2 log(alpha / sigma) then falls at the rate

    -log_snr' = g^2 / sigma^2

whatever the SDE. The reverse-time SDE and the probability-flow ODE are (Song et al. 2021, Eq. 6 and 13)

    dx = [f x - g^2 score] dt + g dw,      dx = [f x - g^2 score / 2] dt.
"""

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.sdes.memory import remembered
from score_sde.sdes.quadrature import linear_marginal
from score_sde.tensors import as_time, expand, sum_event


@dataclass(frozen=True)
class SDE(ABC):  # noqa: B024  (two pairs of methods, of which a subclass writes one: checked on creation)
    """A forward SDE. Subclasses define ``alpha`` and ``sigma``, or ``drift`` and ``diffusion``, or all four.

    Every method takes ``t`` as a tensor ``(B,)`` or ``()`` or as a number, and answers in the shape of ``t``. An SDE
    whose drift is not linear in ``x`` defines ``drift`` and ``diffusion`` alone: whatever needs its marginal then
    raises a ``TypeError`` that says so.

    Args:
        T: time at which the data has become noise.
        t_min: the smallest time at which the score is learned and evaluated, 0 < t_min < T.
    """

    T: float = field(default=1.0, kw_only=True)
    t_min: float = field(default=1e-5, kw_only=True)

    sigma_0 = 0.0
    """Standard deviation of the noise at t = 0, used where sigma comes from ``drift`` and ``diffusion``."""

    def __post_init__(self):
        require_finite({"T": self.T, "t_min": self.t_min})
        if not 0 < self.t_min < self.T:
            raise ValueError(f"t_min must lie between 0 and T = {self.T}, got {self.t_min}")
        if not (self._defines("alpha", "sigma") or self._defines("drift", "diffusion")):
            raise TypeError(f"{type(self).__name__} must define alpha and sigma, or drift and diffusion")

    def _defines(self, *names: str) -> bool:
        return all(getattr(type(self), name) is not getattr(SDE, name) for name in names)

    # the marginal

    def alpha(self, t: Tensor | float) -> Tensor:
        """Factor of the data in x_t."""
        return linear_marginal(self, as_time(t))[0].exp()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Standard deviation of the noise in x_t."""
        return linear_marginal(self, as_time(t))[1].sqrt()

    def noise_level(self, t: Tensor | float) -> Tensor:
        """sigma / alpha: the standard deviation of the noise beside data of unit scale."""
        return self.sigma(t) / self.alpha(t)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log alpha(t)."""
        return self.alpha(t).log()

    def log_snr(self, t: Tensor | float) -> Tensor:
        """Log signal-to-noise ratio 2 log(alpha / sigma), falling in t (Kingma et al. 2021, Eq. 2)."""
        if self._defines("alpha", "sigma"):
            return 2 * (self.log_alpha(t) - self.sigma(t).log())
        log_alpha, variance = linear_marginal(self, as_time(t))
        return 2 * log_alpha - variance.log()

    def inverse_log_snr(self, log_snr: Tensor | float) -> Tensor:
        """The time in [t_min, T] at which ``log_snr`` is reached, to the precision of the dtype.

        A cached table brackets it closely; Newton's method, whose slope is -g^2 / sigma^2, does the rest inside the bracket.
        """
        target = as_time(log_snr)
        times, values = _log_snr_table(self, target.dtype, target.device)
        cell = torch.searchsorted(-values, -target.detach().contiguous()).clamp(1, len(times) - 1)
        low, high = times[cell - 1], times[cell]
        t = (low + high) / 2
        for _ in range(6):
            newton = t + (self.log_snr(t) - target) * (self.sigma(t) / self.diffusion(t)) ** 2
            t = newton.clamp(low, high)
        return t

    def perturb(self, x0: Tensor, t: Tensor | float, epsilon: Tensor) -> Tensor:
        """A draw of x_t given ``x0`` ``(B, *D)``: alpha x0 + sigma epsilon, with ``epsilon`` standard normal."""
        if epsilon.shape != x0.shape:
            raise ValueError(f"x0 has the shape {tuple(x0.shape)}, and epsilon {tuple(epsilon.shape)}: they must be the same")
        t = as_time(t)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * epsilon

    # the process

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Drift of the forward SDE, ``(B, *D)``: f(t) x."""
        return expand(self.drift_coefficient(t), x) * x

    def drift_coefficient(self, t: Tensor | float) -> Tensor:
        """f(t), the drift at x = 1 of a linear SDE."""
        t = as_time(t)
        if self._defines("drift"):
            self.require_linear()
            return self.drift(torch.ones_like(t).reshape(-1, 1), t.reshape(-1)).reshape(t.shape)
        return _derivative(self.log_alpha, t)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t), the diffusion coefficient."""
        t = as_time(t)
        sigma, slope = self.sigma(t), _derivative(self.sigma, t)
        return (2 * sigma * (slope - self.drift_coefficient(t) * sigma)).sqrt()

    def reverse_drift(self, x: Tensor, t: Tensor | float, score: Tensor) -> Tensor:
        """Drift of the reverse-time SDE, with dt negative (Song et al. 2021, Eq. 6)."""
        return self.drift(x, t) - expand(self.diffusion(t) ** 2, x) * score

    def probability_flow(self, x: Tensor, t: Tensor | float, score: Tensor) -> Tensor:
        """Drift of the probability-flow ODE (Song et al. 2021, Eq. 13)."""
        return self.drift(x, t) - expand(self.diffusion(t) ** 2 / 2, x) * score

    def require_linear(self) -> None:
        """Raise a ``TypeError`` unless the drift is linear in x, on which alpha, sigma and log-SNR rest."""
        if self._defines("drift") and not self._defines("alpha", "sigma") and not _is_linear(self):
            raise TypeError(
                f"{type(self).__name__} has a drift that is not linear in x, so its alpha, sigma and log-SNR are "
                "not known: sample it with euler_maruyama or the ODE from a score and an x_T of your own"
            )

    def require_ends(self) -> None:
        """Raise a ``ValueError`` unless the log-SNR is finite from t_min to T and falls, on which every solver rests.

        It is computed once for an SDE. Where the drift is not linear in x there is no log-SNR, and nothing is asked of it.
        """
        if (not self._defines("drift") or self._defines("alpha", "sigma") or _is_linear(self)) and (fault := _fault(self)):
            raise ValueError(fault)

    # the prior

    @property
    def prior_std(self) -> Tensor:
        """The standard deviation of the prior: sigma(T)."""
        return self.sigma(self.T)

    def prior_noise(self, noise: Tensor) -> Tensor:
        """Scale standard normal ``noise`` to the prior N(0, sigma(T)^2 I)."""
        return self.prior_std * noise

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` ``(B, *D)`` under N(0, sigma(T)^2 I), in nats, ``(B,)``."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        std, dim = float(self.prior_std), x[0].numel()
        return -sum_event((x / std) ** 2) / 2 - dim * (math.log(std) + math.log(2 * math.pi) / 2)


@remembered(64)
def _is_linear(sde: SDE) -> bool:
    x = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64, device="cpu")
    for t in (sde.t_min, sde.T / 2, sde.T):
        at_0, at_1, at_2 = sde.drift(x, torch.full_like(x[:, 0], t)).flatten().tolist()
        if at_0 != 0 or not math.isclose(at_2, -2 * at_1, rel_tol=1e-9):
            return False
    return True


@remembered(64)
@torch.no_grad()
def _fault(sde: SDE) -> str:
    """What is wrong with the log-SNR between t_min and T, and what to do; empty where nothing is."""
    number = lambda function, t: float(function(torch.tensor(t, dtype=torch.float64, device="cpu")))
    for end, t in (("t_min", sde.t_min), ("T", sde.T)):
        value, alpha, sigma = (number(function, t) for function in (sde.log_snr, sde.alpha, sde.sigma))
        if math.isfinite(value):
            continue
        said = f"the log-SNR of {type(sde).__name__} is {value:g} at {end} = {t:g}"
        said += f", where alpha = {alpha:g} and sigma = {sigma:g}"
        if alpha == 0:
            return f"{said}: nothing is left of the data there, and no solver can start; choose T below, {0.999 * t:g} say"
        if sigma == 0:
            return f"{said}: there is no noise yet, and the score is infinite; choose t_min above, or give sigma a least value"
        return f"{said}: both must be positive and finite from t_min to T"
    equal = torch.linspace(sde.t_min, sde.T, 33, dtype=torch.float64, device="cpu")
    geometric = torch.logspace(math.log10(sde.t_min), math.log10(sde.T), 33, dtype=torch.float64, device="cpu")[1:-1]
    times = torch.cat([equal, geometric]).unique()
    values = sde.log_snr(times)
    if not values.isfinite().all():
        bad = times[~values.isfinite()][0].item()
        return f"the log-SNR of {type(sde).__name__} is not finite at t = {bad:g}: alpha and sigma must be positive up to T"
    if (values.diff() >= 0).any():
        i = int((values.diff() >= 0).nonzero()[0])
        return (
            f"the log-SNR of {type(sde).__name__} must fall from t_min to T, and is {values[i]:g} at t = {times[i]:g} and "
            f"{values[i + 1]:g} at t = {times[i + 1]:g}: alpha / sigma must become smaller all the way"
        )
    return ""


@remembered(64)
def _log_snr_table(sde: SDE, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Times from t_min to T, half of them equally spaced and half geometrically, and the log-SNR at each."""
    equal = torch.linspace(sde.t_min, sde.T, 257, dtype=torch.float64, device="cpu")
    geometric = torch.logspace(math.log10(sde.t_min), math.log10(sde.T), 257, dtype=torch.float64, device="cpu")[1:-1]
    times = torch.cat([equal, geometric]).unique()
    return times.to(device, dtype), sde.log_snr(times).to(device, dtype)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # constant in t, as alpha = 1
            return torch.zeros_like(value)
        (slope,) = torch.autograd.grad(value.sum(), t)
    return slope
