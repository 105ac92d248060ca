r"""Variational bounds on the negative log-likelihood of integers: what they have in common.

An integer stands at the centre x0 of its bin. With x_T the last state of a chain, or of a process, that starts from it,

    -log P(x0)  <=  KL(q(x_T | x0) || prior) + diffusion - log p(x0 | x_1),

in expectation over q. The prior is N(0, sigma_T^2 I), so that the first term is alpha_T^2 / (2 sigma_T^2) ||x0||^2. The other
two differ between a chain of steps (``chain``) and continuous time (``continuous``). Both need what the score misses at noisy
states x_t = alpha x0 + sigma epsilon: with e = epsilon + sigma score, the error of the denoised x0 is -(sigma / alpha) e.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.data import DataSpec
from score_sde.decoder import centres
from score_sde.inputs import whole
from score_sde.likelihood.evaluation import spec_of
from score_sde.likelihood.record import VariationalBound
from score_sde.progress import Progress
from score_sde.score import BoundScore, Score, counting, device_of, dtype_of, require_conditions
from score_sde.solvers.base import SolverError
from score_sde.tensors import Condition, SampleNoise, batch_time, condition_of, expand, sum_event


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples with their random numbers: integers and the centres x0 of their bins, ``(B, *D)``."""

    score: BoundScore
    data: DataSpec
    integers: Tensor
    x0: Tensor
    noise: SampleNoise
    uniform: SampleNoise

    def stratified(self) -> Tensor:
        """One number at random in each of as many equal parts of [0, 1] as there are times, ``(B, times)``, float64."""
        u = self.uniform.uniform()
        return (torch.arange(u.shape[1], dtype=u.dtype) + u) / u.shape[1]

    def error(self, t: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """epsilon + sigma score at a draw of x_t, and log Sigma of the step with these ``ends``, by one evaluation.

        Both are float64, ``(B, *D)``. Without ends log Sigma is 0, ``()``.
        """
        sde, epsilon, log_variance = self.score.sde, self.noise.normal(), torch.zeros(())
        sigma = expand(sde.sigma(t).to(self.x0), epsilon)
        x = expand(sde.alpha(t).to(self.x0), epsilon) * self.x0 + sigma * epsilon
        if ends is None:
            score = self.score(x, t)
        else:
            low, high = (end.to(x.device) for end in ends)
            score, log_variance = self.score.score_and_variance(x, t, (low, high))
        error, log_variance = (epsilon + sigma * score).double(), log_variance.double()
        finite = sum_event(error + log_variance.to(error)).isfinite()
        if not finite.all():
            time = batch_time(t, x)[~finite][0].item()
            raise SolverError(
                f"the bound is not finite at t = {time:.3g}: the score returned NaN or infinite values there; check the model "
                "at this time"
            )
        return error, log_variance


@dataclass(frozen=True)
class Terms:
    """What differs from bound to bound: its terms, and what the record says of them.

    ``draw`` gives a draw of the diffusion and of the reconstruction of a batch, in nats, ``(B,)`` each, by ``times`` times for
    each sample. The others are as in the record.
    """

    draw: Callable[[Batch], tuple[Tensor, Tensor]]
    bound: str
    times: int
    t_min: float
    T: float
    steps: int | None = None
    variance: str | None = None


def estimate_bound(
    model: Score,
    values: Tensor,
    terms: Terms,
    *,
    draws: int,
    data: DataSpec | None,
    cond: Condition | None,
    batch_size: int,
    seed: int,
    progress: bool,
) -> VariationalBound:
    """The bound of these terms on ``values``, each sample once; the other arguments are those of ``discrete_bound``."""
    sde, spec = model.sde, spec_of(model, data)
    if spec.levels is None:
        raise ValueError("the data is continuous, and these bounds are for integers: use bits_per_dim or log_likelihood")
    whole("batch_size", batch_size, 1)
    whole("draws", draws, 1)
    spec.check(values)
    require_conditions(cond, len(values))
    device, dtype = device_of(model), torch.promote_types(dtype_of(model), torch.float32)
    snr, nfe, parts = float(sde.log_snr(terms.T).exp()), 0.0, []
    chunks = values.split(batch_size)
    shown = Progress("bound", len(chunks), unit="batch", shown=progress)
    with torch.no_grad(), counting(model) as (counted, counter), shown as bar:
        for i, chunk in enumerate(chunks):
            first = i * batch_size
            told = condition_of(cond, torch.arange(first, first + len(chunk)))
            noise = SampleNoise(seed, chunk.shape, first=first, purpose="bound", device=device, dtype=dtype)
            shape = (len(chunk), terms.times)
            uniform = SampleNoise(seed, shape, first=first, purpose="bound times", dtype=torch.float64)
            integers = chunk.to(device).double()
            x0 = centres(integers, spec)
            batch = Batch(BoundScore(counted, told), spec, integers, x0.to(dtype), noise, uniform)
            before = counter.nfe
            drawn = torch.stack([torch.stack(terms.draw(batch)) for _ in range(draws)])
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
        bound=terms.bound,
        steps=terms.steps,
        variance=terms.variance,
        times=terms.times,
        draws=draws,
        t_min=terms.t_min,
        T=terms.T,
        seed=seed,
        batch_size=batch_size,
    )
