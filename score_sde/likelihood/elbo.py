r"""Variational bounds on the negative log-likelihood of integers, by a discrete chain and in continuous time.

An integer stands at the centre x0 of its bin. A chain 0 < t_1 < ... < t_N, with the data itself before t_1 and the prior
N(0, sigma^2 I) after t_N, bounds -log P(x0) from above by (Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11)

    KL(q(x_N | x0) || prior) + sum_{k > 1} KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)) - log p(x0 | x_1),

each term in expectation over q. With s < t two neighbours and lambda = log(alpha^2 / sigma^2) falling in t, any linear SDE has
(Kingma et al. 2021, Appendix A; Ho et al. 2020, Eq. 6 and 7, where alpha^2 + sigma^2 = 1)

    q(x_t | x_s)     = N(alpha_ts x_s, beta I),   alpha_ts = alpha_t / alpha_s,   beta = sigma_t^2 - alpha_ts^2 sigma_s^2
    q(x_s | x_t, x0) = N(mu(x0), beta_tilde I),   mu(x0) = (alpha_ts sigma_s^2 x_t + alpha_s beta x0) / sigma_t^2,
                                                  beta_tilde = beta sigma_s^2 / sigma_t^2.

The model's step is N(mu(x0_hat), Sigma) with x0_hat = (x_t + sigma_t^2 score) / alpha_t and log Sigma = v log beta +
(1 - v) log beta_tilde: v is 0 or 1 for a fixed variance, else learned (Nichol and Dhariwal 2021, Eq. 15). Since
x0 - x0_hat = -(sigma_t / alpha_t) e with e = epsilon + sigma_t score, nothing cancels in the divergence of the two Gaussians,

    KL = sum [ r + expm1(-r) + expm1(lambda_s - lambda_t) exp(-r) e^2 ] / 2,   r = v log(sigma_t^2 / sigma_s^2),

whose last part alone is left where v = 0 (Kingma et al. 2021, Eq. 14). For p(x0 | x_1) the Gaussian N(x0_hat, Sigma_1) is
integrated over the bin, the outermost bins reaching to infinity (Ho et al. 2020, Eq. 13). There beta is sigma_1^2, and
beta_tilde, which is 0 for a step down to the data, is that of the step above.

As the steps become small this tends to the bound in continuous time, an integral over the log-SNR alone (Kingma et al. 2021,
Section 5.1),

    KL(q(x_T | x0) || prior) + 1/2 \int_{lambda_T}^{lambda_{t_min}} E ||e||^2 dlambda - log p(x0 | x_{t_min}),

where p(x0 | x) is, coordinate by coordinate, proportional to N(x; alpha x0, sigma^2) over the levels (ibid., Section 3).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.inputs import whole
from score_sde.likelihood.evaluation import spec_of
from score_sde.likelihood.record import VariationalBound
from score_sde.progress import Progress
from score_sde.score import Counter, Score, counted, innermost
from score_sde.sdes import SDE
from score_sde.solvers.base import SolverError
from score_sde.tensors import SampleNoise, batch_time, expand, sum_event

VARIANCES = {"beta_tilde": 0.0, "beta": 1.0, "learned": None}
"""Name -> v in log Sigma = v log beta + (1 - v) log beta_tilde; None where the model gives it."""


def discrete_bound(
    model: Score,
    values: Tensor,
    *,
    steps: int = 1000,
    nodes: Tensor | None = None,
    variance: str = "beta_tilde",
    sampled_steps: int | None = None,
    draws: int = 1,
    data: DataSpec | None = None,
    cond: Tensor | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> VariationalBound:
    """The bound of a discrete chain, L_T + L_{t-1} + L_0, on the negative log-likelihood of ``values``, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: integers from 0 to levels - 1, ``(N, *D)``.
        steps: number of steps N of the chain t_k = k T / N; for a ``TabulatedSDE`` of N betas these are its own times.
        nodes: times t_1 ... t_N of a chain of one's own, rising, in place of ``steps``.
        variance: of the model's steps: ``beta_tilde``, ``beta``, or ``learned``, as the model's ``score_and_variance`` has it.
        sampled_steps: evaluate that many steps drawn for each sample, one from each of as many equal parts of the chain, which
            leaves the bound unbiased; by default all of them.
        draws: number of independent repetitions to be averaged; two or more give Monte-Carlo errors.
        data: description of the data; by default the model's.
        cond: condition of each sample, ``(N, ...)``.
        batch_size: samples at a time.
        seed: the noise and the steps of sample i depend on ``seed`` and i alone.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        SolverError: the score returned NaN or infinite values.
        ValueError: an argument is not one of those allowed, or the data has no levels.
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose one of {', '.join(VARIANCES)}")
    if variance == "learned" and not hasattr(model, "score_and_variance"):
        raise ValueError("the score has no score_and_variance: choose variance='beta_tilde' or 'beta'")
    model.sde.require_ends()
    chain = _Chain(model.sde, _nodes(model.sde, steps, nodes))
    inner_steps = len(chain.nodes) - 1
    if sampled_steps is not None and not 1 <= whole("sampled_steps", sampled_steps, 0) <= inner_steps:
        raise ValueError(f"sampled_steps must lie between 1 and {inner_steps}, all steps but the first, got {sampled_steps}")
    times = sampled_steps or inner_steps

    def terms(batch: _Batch) -> tuple[Tensor, Tensor]:
        if sampled_steps is None:
            taken = torch.arange(inner_steps)
        else:
            taken = (batch.stratified() * inner_steps).long().clamp_max(inner_steps - 1).T
        diffusion = sum(chain.divergence(batch, step, VARIANCES[variance]) for step in taken)
        return diffusion * (inner_steps / times), chain.reconstruction(batch, VARIANCES[variance])

    protocol = {
        "bound": "discrete",
        "steps": len(chain.nodes),
        "variance": variance,
        "times": times,
        "draws": draws,
        "t_min": float(chain.nodes[0]),
        "T": float(chain.nodes[-1]),
        "seed": seed,
        "batch_size": batch_size,
    }
    return _bound(model, values, terms, protocol, data=data, cond=cond, progress=progress)


def continuous_bound(
    model: Score,
    values: Tensor,
    *,
    times: int = 100,
    draws: int = 1,
    data: DataSpec | None = None,
    cond: Tensor | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> VariationalBound:
    """The bound in continuous time on the negative log-likelihood of ``values``, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: integers from 0 to levels - 1, ``(N, *D)``.
        times: evaluations per sample and draw, one at random in each of as many equal parts of the log-SNR's range.
        draws: number of independent repetitions to be averaged; two or more give Monte-Carlo errors.
        data: description of the data; by default the model's.
        cond: condition of each sample, ``(N, ...)``.
        batch_size: samples at a time.
        seed: the noise and the times of sample i depend on ``seed`` and i alone.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        SolverError: the score returned NaN or infinite values.
        ValueError: an argument is not one of those allowed, or the data has no levels.
    """
    whole("times", times, 1)
    sde = model.sde
    sde.require_ends()
    low, high = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))

    def terms(batch: _Batch) -> tuple[Tensor, Tensor]:
        t = sde.inverse_log_snr(low + (high - low) * batch.stratified()).clamp(sde.t_min, sde.T)
        squares = sum(sum_event(batch.error(column)[0] ** 2) for column in t.unbind(1))
        return (high - low) / 2 * squares / times, batch.level_surprisal(sde.t_min)

    protocol = {
        "bound": "continuous",
        "steps": None,
        "variance": None,
        "times": times,
        "draws": draws,
        "t_min": sde.t_min,
        "T": sde.T,
        "seed": seed,
        "batch_size": batch_size,
    }
    return _bound(model, values, terms, protocol, data=data, cond=cond, progress=progress)


def discretized_gaussian(integers: Tensor, mean: Tensor, std: Tensor | float, data: DataSpec) -> Tensor:
    """Log-probability in nats of the bins of ``integers`` under N(mean, std^2), float64, ``(B, *D)``.

    With a < b the ends of a bin in units of std from the mean, taken on the side where a + b <= 0,

        log(Phi(b) - Phi(a)) = log Phi(b) + log(-expm1(-d)),   d = log Phi(b) - log Phi(a),

    and in the tail, where Phi(z) = exp(-z^2/2) erfcx(-z / sqrt 2) / 2, the leading part (a^2 - b^2) / 2 of d is the product of
    the bin's width and its distance, which loses no digits. The first and the last bin are open (Ho et al. 2020, Eq. 13).

    Args:
        integers: ``(B, *D)``, from 0 to levels - 1.
        mean, std: in model coordinates, of a shape that broadcasts with ``integers``.
        data: levels and width of the bins.
    """
    mean, std = mean.double(), torch.as_tensor(std, dtype=torch.float64, device=mean.device)
    centre = (_centres(integers, data) - mean) / std
    half = data.slope / 2 / std
    below = torch.where(integers == 0, -math.inf, centre - half)
    above = torch.where(integers == data.levels - 1, math.inf, centre + half)
    flip = below + above > 0
    a, b = torch.where(flip, -above, below), torch.where(flip, -below, above)
    tails = [torch.special.erfcx(-z / math.sqrt(2)) for z in (a, b)]
    far = torch.where(a.isinf(), math.inf, 2 * half * centre.abs() + (tails[1] / tails[0]).log())
    near = torch.special.log_ndtr(b) - torch.special.log_ndtr(a)
    return torch.special.log_ndtr(b) + (-torch.expm1(-torch.where(b > 0, near, far))).log()


# the chain


class _Chain:
    """What the steps between ``nodes`` ``(N,)`` need of the SDE, in float64."""

    def __init__(self, sde: SDE, nodes: Tensor):
        self.nodes, self.sde = nodes, sde
        log_snr, log_variance = sde.log_snr(nodes), 2 * sde.sigma(nodes).log()
        self.gain = torch.expm1(-log_snr.diff())
        self.log_ratio = log_variance.diff()
        self.log_first = log_variance[0], (-torch.expm1(log_snr[1] - log_snr[0])).log()

    def divergence(self, batch: "_Batch", step: Tensor, v: float | None) -> Tensor:
        """KL of the step from node ``step + 1`` to node ``step``, in nats, ``(B,)``; ``step`` is ``()`` or ``(B,)``."""
        error, v = batch.error(self.nodes[step + 1], v)
        gain, log_ratio = (expand(values[step].to(error), error) for values in (self.gain, self.log_ratio))
        r = v * log_ratio
        return sum_event(r + torch.expm1(-r) + gain * (-r).exp() * error**2) / 2

    def reconstruction(self, batch: "_Batch", v: float | None) -> Tensor:
        """-log p(x0 | x_1) in nats, ``(B,)``."""
        t = self.nodes[0]
        error, v = batch.error(t, v)
        log_beta, log_shrinkage = self.log_first
        std = torch.as_tensor((log_beta + (1 - v) * log_shrinkage) / 2).exp()
        mean = batch.x0 + self.sde.sigma(t) / self.sde.alpha(t) * error
        return -sum_event(discretized_gaussian(batch.integers, mean, std, batch.data))


def _nodes(sde: SDE, steps: int, nodes: Tensor | None) -> Tensor:
    if nodes is None:
        whole("steps", steps, 2)
        if sde.T / steps < sde.t_min * (1 - 1e-9):
            raise ValueError(
                f"the first of {steps} steps ends at t = {sde.T / steps:.3g}, below t_min = {sde.t_min:g}, where the score is "
                f"not known: take at most {math.floor(sde.T / sde.t_min * (1 + 1e-9))} steps"
            )
        return torch.arange(1, steps + 1, dtype=torch.float64) / steps * sde.T
    nodes = torch.as_tensor(nodes, dtype=torch.float64, device="cpu")
    if nodes.ndim != 1 or len(nodes) < 2 or not (nodes.diff() > 0).all() or nodes[0] < sde.t_min or nodes[-1] > sde.T:
        raise ValueError(f"nodes must be two or more rising times between t_min = {sde.t_min:g} and T = {sde.T:g}")
    return nodes


# samples


@dataclass(frozen=True, eq=False)
class _Batch:
    """Samples with their random numbers: integers and the centres x0 of their bins, ``(B, *D)``."""

    score: Score
    counter: Counter
    data: DataSpec
    integers: Tensor
    x0: Tensor
    cond: Tensor | None
    noise: SampleNoise
    uniform: SampleNoise

    def stratified(self) -> Tensor:
        """One number at random in each of as many equal parts of [0, 1] as there are times, ``(B, times)``, float64."""
        u = self.uniform.uniform()
        return (torch.arange(u.shape[1], dtype=u.dtype) + u) / u.shape[1]

    def error(self, t: Tensor, v: float | None = 0.0) -> tuple[Tensor, Tensor | float]:
        """epsilon + sigma score at a draw of x_t, ``(B, *D)`` in float64, and v, taken from the model where it is None."""
        sde, epsilon = self.score.sde, self.noise.normal()
        sigma = expand(sde.sigma(t).to(self.x0), epsilon)
        x = expand(sde.alpha(t).to(self.x0), epsilon) * self.x0 + sigma * epsilon
        time = batch_time(t, x)
        if v is None:
            self.counter.nfe += 1
            score, v = self.score.score_and_variance(x, time, self.cond)
            v = v.double()
        else:
            score = counted(self.score, self.counter)(x, time, self.cond)
        error = (epsilon + sigma * score).double()
        finite = sum_event(error + v).isfinite()
        if not finite.all():
            raise SolverError(
                f"the bound is not finite at t = {time[~finite][0].item():.3g}: the score returned NaN or infinite values "
                "there; check the model at this time"
            )
        return error, v

    def level_surprisal(self, t: float) -> Tensor:
        """-log p(x0 | x_t) in nats, ``(B,)``, where p is proportional to N(x_t; alpha x0, sigma^2) over the levels.

        A level that lies j bins away has, with c = alpha width / sigma, exp(c j (epsilon - c j / 2)) times the weight of x0's.
        """
        sde, epsilon = self.score.sde, self.noise.normal().double()
        c = float(sde.alpha(t) / sde.sigma(t)) * self.data.slope
        total = torch.full_like(epsilon, -math.inf)
        for level in range(self.data.levels):
            shift = c * (level - self.integers)
            total = torch.logaddexp(total, shift * (epsilon - shift / 2))
        return sum_event(total)


def _centres(integers: Tensor, data: DataSpec) -> Tensor:
    """The centres of the bins in model coordinates, float64: where the model sees the integers."""
    return data.dequantized(integers.double(), 0.5)


def _bound(
    model: Score,
    values: Tensor,
    terms: Callable[[_Batch], tuple[Tensor, Tensor]],
    protocol: dict,
    *,
    data: DataSpec | None,
    cond: Tensor | None,
    progress: bool,
) -> VariationalBound:
    """The record of a bound whose diffusion and reconstruction, in nats ``(B,)``, are ``terms`` of a batch."""
    seed, batch_size, draws = protocol["seed"], protocol["batch_size"], protocol["draws"]
    sde, inner = model.sde, innermost(model)
    spec = spec_of(model, data)
    if spec.levels is None:
        raise ValueError("the data is continuous, and these bounds are for integers: use bits_per_dim or log_likelihood")
    for name in ("batch_size", "draws"):
        whole(name, protocol[name], 1)
    spec.check(values)
    if cond is not None and len(cond) != len(values):
        raise ValueError(f"cond must hold one condition for each of {len(values)} samples, got {len(cond)}")
    dtype = torch.promote_types(getattr(inner, "dtype", torch.get_default_dtype()), torch.float32)
    place = {"device": getattr(inner, "device", "cpu"), "dtype": dtype}
    snr, counter, nfe, parts = float(sde.log_snr(protocol["T"]).exp()), Counter(), 0.0, []
    conditions = [None] * math.ceil(len(values) / batch_size) if cond is None else cond.split(batch_size)
    chunks = values.split(batch_size)
    with torch.no_grad(), Progress("bound", len(chunks), unit="batch", shown=progress) as bar:
        for i, (chunk, condition) in enumerate(zip(chunks, conditions, strict=True)):
            first = i * batch_size
            noise = SampleNoise(seed, chunk.shape, first=first, purpose="bound", **place)
            shape = (len(chunk), protocol["times"])
            uniform = SampleNoise(seed, shape, first=first, purpose="bound times", dtype=torch.float64)
            integers = chunk.to(place["device"]).double()
            x0 = _centres(integers, spec)
            batch = _Batch(model, counter, spec, integers, x0.to(dtype), condition, noise, uniform)
            before = counter.nfe
            drawn = torch.stack([torch.stack(terms(batch)) for _ in range(draws)])
            nfe += (counter.nfe - before) * len(chunk) / len(values)
            prior = (snr / 2 * sum_event(x0**2)).expand(draws, 1, -1)
            parts.append(torch.cat([prior, drawn], dim=1).cpu())
            bar.update()
    bits = torch.cat(parts, dim=2) / (spec.dim * math.log(2))  # (draw, term, sample)
    totals = bits.sum(1)
    single = totals.mean(0)
    errors = totals.std(0) / math.sqrt(draws) if draws > 1 else None
    prior, diffusion, reconstruction = bits.mean((0, 2)).tolist()
    return VariationalBound(
        mean=single.mean().item(),
        stderr=(single.std() / math.sqrt(len(single))).item() if len(single) > 1 else math.nan,
        prior=prior,
        diffusion=diffusion,
        reconstruction=reconstruction,
        monte_carlo=None if errors is None else (errors.square().sum().sqrt() / len(single)).item(),
        samples=len(single),
        dim=spec.dim,
        levels=spec.levels,
        nfe=nfe,
        per_sample=tuple(single.tolist()),
        per_sample_stderr=None if errors is None else tuple(errors.tolist()),
        **protocol,
    )
