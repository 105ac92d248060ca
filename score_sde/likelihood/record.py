r"""bits/dim by the probability-flow ODE, with the protocol that gives the number a meaning (Song et al. 2021, Appendix D.2).

For integers it is -E log2 P(k) / D, where a dequantization bounds P from below by the density of points, and for anything else
-E log2 p / D in the data's own units. The density is that of data plus noise of standard deviation sigma(t_min) / alpha(t_min).
Evaluated at points without that noise, as those of uniform dequantization are, it costs bits that no model can save where the
noise is not small beside a bin.

With several importance samples a noisy log p does harm: the exponential of noise is larger than 1 in the mean and lifts the
bound. All samples of an integer share their probes, so that most of the noise cancels, but only the exact divergence is safe.
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from score_sde.data import DataSpec, Moments
from score_sde.divergence import Divergence, ExactDivergence, as_divergence
from score_sde.files import write_text
from score_sde.likelihood.dequantization import DEQUANTIZATIONS
from score_sde.likelihood.ode import log_likelihood
from score_sde.model import Score
from score_sde.sdes import SDE
from score_sde.solvers.base import innermost
from score_sde.solvers.probability_flow import FIXED, ProbabilityFlow
from score_sde.tensors import SampleNoise


@dataclass(frozen=True)
class BitsPerDim:
    """A likelihood and how it was obtained.

    ``mean`` is the negative log-likelihood in bits per dimension and ``stderr`` its standard error over the samples, into which
    the noise of dequantization and probes enters once; ``per_sample`` holds the single values in the order of the data.
    ``prior_mismatch`` is the divergence, in bits/dim, between the noised training data at T, taken as Gaussian, and the prior;
    None where the training data's moments were not given. Of tolerances and steps with their grid, the ODE method has one or
    the other.
    """

    mean: float
    stderr: float
    samples: int
    dim: int
    levels: int | None
    dequantization: str
    importance_samples: int
    divergence: str
    method: str
    rtol: float | None
    atol: float | None
    steps: int | None
    grid: str | None
    t_min: float
    nfe: float
    vjps: float
    seed: int
    batch_size: int
    prior_mismatch: float | None
    per_sample: tuple[float, ...] = field(repr=False)

    def sentence(self) -> str:
        """The result with its protocol, to be pasted into a paper."""
        of = "discrete" if self.levels else "continuous"
        fixed = self.steps is not None
        how = f"{self.steps} steps ({self.grid})" if fixed else f"rtol = {self.rtol:g}, atol = {self.atol:g}"
        levels = f", {self.levels} levels, {self.dequantization.replace('_', ' ')} dequantization" if self.levels else ""
        levels += f" with {self.importance_samples} importance samples" if self.importance_samples > 1 else ""
        cost = f"{self.nfe:.6g} network evaluations and {self.vjps:.6g} vector-Jacobian products per sample"
        return (
            f"{self.mean:.4f} +- {self.stderr:.4f} bits/dim (standard error over {self.samples} samples of {of} data with "
            f"{self.dim} dimensions{levels}; probability-flow ODE by {self.method}, {how}, t_min = {self.t_min:g}, "
            f"{self.divergence}, {cost}, seed {self.seed})"
        )

    def save(self, path: Path | str, **about: object) -> None:
        """Write the record, and whatever ``about`` says of the model, as JSON."""
        write_text(path, json.dumps({**about, "sentence": self.sentence(), **asdict(self)}) + "\n")


def bits_per_dim(
    model: Score,
    values: Tensor,
    *,
    levels: int | None = None,
    data: DataSpec | None = None,
    dequantization: str = "uniform",
    importance_samples: int = 1,
    divergence: str | Divergence = "hutchinson",
    probes: int = 1,
    solver: ProbabilityFlow = ProbabilityFlow(),
    cond: Tensor | None = None,
    batch_size: int = 128,
    seed: int = 0,
    moments: Moments | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Negative log-likelihood of ``values`` in bits per dimension, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: data in its own units, ``(N, *D)``: integers from 0 to levels - 1, or continuous values, whose density
            is then in their own units.
        levels: number of integer values; checked against the model's own.
        data: description of the data; by default the model's.
        dequantization: ``uniform`` or ``truncated_normal``, for integers.
        importance_samples: points per integer, K; the bound is that of their average density.
        divergence: a key of ``DIVERGENCES``, ``hutchinson`` or ``exact`` for example, or an object such as
            ``Hutchinson(probes=4)``.
        probes: number of probes where the divergence is given by its name.
        solver: how the ODE is solved. With an adaptive method the steps are shared by a batch.
        cond: what each sample is conditioned on, ``(N, ...)``.
        batch_size: samples at a time.
        seed: sample i is dequantized and probed by random numbers that depend on ``seed`` and i alone.
        moments: of the training data, for ``prior_mismatch``.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        ValueError: an argument is not one of those allowed.
    """
    spec = data or getattr(innermost(model), "data", None)
    if spec is None:
        raise ValueError("the score does not say what its data is: give data=DataSpec(...)")
    if levels is not None and levels != spec.levels:
        raise ValueError(f"levels is {levels}, but the model was made for {spec.levels or 'continuous data'}")
    if dequantization not in DEQUANTIZATIONS:
        raise ValueError(f"unknown dequantization {dequantization!r}; choose one of {', '.join(DEQUANTIZATIONS)}")
    for name, number in (("batch_size", batch_size), ("importance_samples", importance_samples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if spec.levels is None and importance_samples > 1:
        raise ValueError("importance samples are for integers: continuous data has a density of its own")
    spec.check(values)
    if cond is not None and len(cond) != len(values):
        raise ValueError(f"cond has {len(cond)} entries for {len(values)} samples")
    if spec.levels is not None and dequantization == "uniform":
        _warn_of_noise(model.sde, spec)
    trace = as_divergence(divergence, probes)
    if importance_samples > 1 and not isinstance(trace, ExactDivergence):
        warnings.warn(
            "the noise of an estimated divergence biases an average of importance samples towards fewer bits: use "
            "divergence='exact', or many probes",
            stacklevel=2,
        )
    inner = innermost(model)
    place = {"device": getattr(inner, "device", "cpu"), "dtype": getattr(inner, "dtype", torch.get_default_dtype())}
    results, nfe, vjps = [], 0.0, 0.0
    chunks = values.split(batch_size)
    for i, chunk in enumerate(tqdm(chunks, desc="likelihood", unit="batch", disable=not progress)):
        first = i * batch_size
        noise = SampleNoise(seed, chunk.shape, first=first, purpose="dequantization", **place)
        told = None if cond is None else cond[first : first + len(chunk)].to(place["device"])
        logs = []
        for _ in range(importance_samples):
            if spec.levels is None:  # scaled before it is rounded: it may lie far from 0
                x, log_q = spec.scale(chunk).to(**place), -spec.log_det
            else:
                x, log_q = DEQUANTIZATIONS[dequantization](chunk.to(**place), noise, spec, model.sde)
            result = log_likelihood(model, x, solver=solver, divergence=trace, cond=told, seed=seed, first=first)
            logs.append(result.log_prob.double() - log_q)
            nfe += result.nfe * len(chunk) / len(values)
            vjps += result.vjps * len(chunk) / len(values)
        results.append(torch.stack(logs).logsumexp(0) - math.log(importance_samples))
    fixed = solver.method in FIXED
    bits = -torch.cat(results) / (spec.dim * math.log(2))
    return BitsPerDim(
        mean=bits.mean().item(),
        stderr=(bits.std() / math.sqrt(len(bits))).item() if len(bits) > 1 else math.nan,
        samples=len(bits),
        dim=spec.dim,
        levels=spec.levels,
        dequantization=dequantization if spec.levels else "none",
        importance_samples=importance_samples,
        divergence=str(trace),
        method=solver.method,
        rtol=None if fixed else solver.rtol,
        atol=None if fixed else solver.atol,
        steps=solver.steps if fixed else None,
        grid=solver.grid if fixed else None,
        t_min=model.sde.t_min,
        nfe=nfe,
        vjps=vjps,
        seed=seed,
        batch_size=batch_size,
        prior_mismatch=None if moments is None else prior_mismatch(model.sde, moments),
        per_sample=tuple(bits.tolist()),
    )


def prior_mismatch(sde: SDE, moments: Moments) -> float:
    """KL(N(alpha m, alpha^2 C + sigma^2 I) || N(0, sigma^2 I)) at T in bits per dimension, m and C being the data's moments.

    It is what the likelihood loses, on average, by starting from the prior instead of the noised data itself, as far as the
    first two moments tell.
    """
    alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
    variances = moments.spectrum if moments.covariance is None else torch.linalg.eigvalsh(moments.covariance)
    ratio = (alpha / sigma) ** 2 * variances.clamp_min(0)
    shift = ((alpha / sigma) * moments.mean).square().sum()
    divergence = ((ratio - torch.log1p(ratio)).sum() + shift) / 2
    return float(divergence) / (moments.mean.numel() * math.log(2))


def _warn_of_noise(sde: SDE, spec: DataSpec) -> None:
    """Warn where the noise at t_min is more than a quarter of the variance of dequantization."""
    noise = float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
    width = spec.slope
    if noise**2 > width**2 / 12 / 4:
        floor = math.log2(math.sqrt(2 * math.pi) * noise / width)
        below = f"; no model can score below {floor:.2f} bits/dim" if floor > 0 else ""
        warnings.warn(
            f"the noise at t_min, {noise:.3g}, is large beside a bin of {width:.3g} in model coordinates, and the likelihood "
            f"is that of data with this noise added{below}: a smaller t_min (or sigma_min) makes the number meaningful",
            stacklevel=3,
        )
