r"""Is the error that a likelihood reports the error that it has? Hard mixtures with exact scores, against the closed form.

    python tests/benchmarks/likelihood_honesty.py

Every kind of data below is drawn several times, with every SDE. Of each, ``bits_per_dim`` computes the likelihood of 64 samples
with the exact divergence, at its defaults and again with a ``target_error``. The truth is the closed form, in float64,

    log p(x) = log p_{t_min}(x) + log prior(z) - log p_T(z),

z being the state at T: what the flow with the exact score and the SDE's own prior gives. From that come, in bits/dim,

    true         root mean square of the error of a sample, at the defaults
    said         the same as reported: ``solver_error``
    too low      draws in which the true error is more than 1.5 times what is said
    too high     draws in which more than 5 times the true error is said, and more than 1e-4
    bias         true mean error minus ``solver_bias``, root mean square over the draws, in units of the reported error
    estimate     root mean square of the single samples' own estimates
    > 2          share of samples whose error is more than twice their own estimate
    target       draws in which the target is met or refused, and how many of them were refused
    nfe          evaluations of a sample, and the number of samples that got Runge-Kutta steps
"""

import argparse
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import chi2

from score_sde import SDE, VESDE, VPSDE, DataSpec, GaussianMixture, SolverError, SubVPSDE, bits_per_dim, log_likelihood
from score_sde.likelihood import DualWeighted
from score_sde.progress import Progress
from score_sde.sdes import SDES
from score_sde.tensors import generator

SUITE: dict[str, SDE] = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(sigma_min=0.002, sigma_max=80.0),
    "ddpm, cosine": SDES["ddpm"](schedule="cosine"),
}
COUNT = 64


class Draw:
    """Random numbers of one draw of a kind, in float64."""

    def __init__(self, kind: str, seed: int):
        self.generator = generator(seed, kind)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def frame(self, dim: int, rank: int) -> torch.Tensor:
        return torch.linalg.qr(self.normal(dim, dim))[0][:, :rank]


def low_rank(draw: Draw, dim: int, rank: int, noise: float, components: int, spread: float) -> GaussianMixture:
    factors = spread * torch.stack([draw.normal(dim, rank) for _ in range(components)])
    covariances = factors @ factors.mT + noise**2 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(spread * draw.normal(components, dim), covariances)


def subspace(draw: Draw) -> GaussianMixture:
    """A plane in eight dimensions, and noise of 1e-3 about it."""
    frame = draw.frame(8, 2)
    factors = frame @ (0.4 * draw.normal(3, 2, 2))
    return GaussianMixture(draw.normal(3, 2) @ frame.T, factors @ factors.mT + 1e-6 * torch.eye(8, dtype=torch.float64))


def separated(draw: Draw) -> GaussianMixture:
    """Three modes of width 0.01."""
    return GaussianMixture(draw.normal(3, 2), [1e-4] * 3)


def student(draw: Draw) -> GaussianMixture:
    """Student's t with two degrees of freedom, as a mixture of 40 scales."""
    scales = 2.0 / torch.from_numpy(chi2.ppf((np.arange(40) + 0.5) / 40, 2.0))
    factor = 0.5 * draw.normal(3, 3)
    covariance = factor @ factor.T + 0.05 * torch.eye(3, dtype=torch.float64)
    return GaussianMixture(torch.zeros(40, 3, dtype=torch.float64), scales[:, None, None] * covariance)


def peaked(draw: Draw) -> GaussianMixture:
    """Two modes of widths 0.003 and 0.002."""
    return GaussianMixture(0.5 * draw.normal(2, 2), [9e-6, 4e-6])


def peaked_and_broad(draw: Draw) -> GaussianMixture:
    """Modes of widths 0.01, 0.1 and 1 in four dimensions."""
    return GaussianMixture(0.5 * draw.normal(3, 4), [1e-4, 1e-2, 1.0], [0.3, 0.3, 0.4])


def saddle(draw: Draw) -> GaussianMixture:
    """Two modes; the samples lie between them."""
    return GaussianMixture(draw.normal(2, 2), [0.0225] * 2)


def constant(draw: Draw) -> GaussianMixture:
    """Four coordinates, of which the last has no variance."""
    means, variances = 0.7 * draw.normal(3, 4), 0.01 + 0.1 * draw.uniform(3, 4)
    means[:, 3], variances[:, 3] = 0.3, 0.0
    return GaussianMixture(means, variances)


def many_dimensions(draw: Draw) -> GaussianMixture:
    """64 dimensions, rank 8 and noise of 0.05."""
    return low_rank(draw, 64, 8, 0.05, 5, 0.4)


def single(draw: Draw) -> GaussianMixture:
    """Three overlapping modes and noise of 0.02, computed in float32."""
    return low_rank(draw, 4, 2, 0.02, 3, 0.5)


KINDS = {
    "subspace + 1e-3": subspace,
    "separated modes": separated,
    "between modes": separated,
    "Student-t": student,
    "peaked": peaked,
    "peaked + broad": peaked_and_broad,
    "saddle": saddle,
    "constant coordinate": constant,
    "64-D": many_dimensions,
    "float32": single,
}


def case(kind: str, seed: int) -> tuple[GaussianMixture, torch.Tensor]:
    """A mixture of a kind and samples: its own, but between its modes for a saddle, and for one of eight ``between modes``."""
    draw = Draw(kind, seed)
    mixture = KINDS[kind](draw)
    x = mixture.sample(COUNT, seed=seed)
    moved = {"saddle": COUNT, "between modes": COUNT // 8}.get(kind, 0)
    modes = mixture.means
    first = torch.randint(len(modes), (moved,), generator=draw.generator)
    second = (first + 1) % len(modes)
    share = draw.uniform(moved, 1)
    x[:moved] = share * modes[first] + (1 - share) * modes[second]
    return mixture, x


@dataclass
class Row:
    """What was found for a kind and an SDE, an entry a draw."""

    true: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)
    bias: list[float] = field(default_factory=list)
    estimate: list[float] = field(default_factory=list)
    exceeded: list[float] = field(default_factory=list)
    nfe: list[float] = field(default_factory=list)
    runge_kutta: int = 0
    kept: int = 0
    refused: int = 0

    @property
    def too_low(self) -> int:
        return sum(true > 1.5 * said for true, said in zip(self.true, self.said, strict=True))

    @property
    def too_high(self) -> int:
        return sum(said > max(5 * true, 1e-4) for true, said in zip(self.true, self.said, strict=True))


def measure(row: Row, kind: str, sde: SDE, seed: int, target: float) -> None:
    """Add a draw to a row."""
    mixture, x = case(kind, seed)
    score, data = mixture.score(sde), DataSpec((x.shape[1],))
    if kind == "float32":
        x = x.float()
        score = mixture.to(torch.float32).score(sde)
        mixture = mixture.to(torch.float32).to(torch.float64)
    exact, unit = mixture.score(sde), x.shape[1] * math.log(2)
    z = log_likelihood(exact, x.double(), solver=DualWeighted()).latent
    truth = exact.log_prob(x.double(), sde.t_min) + sde.prior_log_prob(z) - exact.log_prob(z, sde.T)

    def error(record) -> torch.Tensor:
        return torch.tensor(record.per_sample, dtype=torch.float64) + truth / unit

    record = bits_per_dim(score, x, data=data, divergence="exact")
    wrong, estimate = error(record), torch.tensor(record.per_sample_solver_error, dtype=torch.float64)
    row.true.append(wrong.square().mean().sqrt().item())
    row.said.append(record.solver_error)
    row.bias.append((wrong.mean().item() - record.solver_bias) / record.solver_error)
    row.estimate.append(estimate.square().mean().sqrt().item())
    row.exceeded.append((wrong.abs() > 2 * estimate).double().mean().item())
    row.nfe.append(record.nfe)
    row.runge_kutta += record.runge_kutta
    try:
        row.kept += (
            error(bits_per_dim(score, x, data=data, divergence="exact", target_error=target)).square().mean().sqrt() <= target
        )
    except SolverError:
        row.refused += 1


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="draws of each case")
    parser.add_argument("--target", type=float, default=0.003, help="target_error in bits/dim")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    options = parser.parse_args()
    started, rows = time.perf_counter(), {}
    cases = [(kind, name) for kind in options.kinds.split(",") for name in SUITE]
    measured = ("true", "said", "too low", "too high", "bias", "estimate", "> 2", "target", "refused", "nfe", "by Runge-Kutta")
    head = ("kind", "SDE", *measured)
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    of = lambda count: f"{count} / {options.seeds}"
    for kind, name in cases:
        row = rows[kind, name] = Row()
        with Progress(f"{kind}, {name}", options.seeds, unit="draw", stays=False) as bar:
            for seed in bar.over(range(options.seeds)):
                measure(row, kind, SUITE[name], seed, options.target)
        print(
            f"| {kind} | {name} | {rms(row.true):.5f} | {rms(row.said):.5f} | {of(row.too_low)} | {of(row.too_high)} | "
            f"{rms(row.bias):.2f} | {rms(row.estimate):.5f} | {np.mean(row.exceeded):.1%} | {of(row.kept + row.refused)} | "
            f"{row.refused} | {np.mean(row.nfe):.0f} | {row.runge_kutta} |",
            flush=True,
        )
    draws = len(cases) * options.seeds
    total = lambda count: f"{sum(map(count, rows.values())) / draws:.1%}"
    print(
        f"\n{draws} draws. True error at most 1.5 times what is said: {total(lambda r: options.seeds - r.too_low)}. "
        f"At most 5 times the true error said, or 1e-4: {total(lambda r: options.seeds - r.too_high)}. "
        f"Target of {options.target:g} met or refused: {total(lambda r: r.kept + r.refused)}; "
        f"refused: {total(lambda r: r.refused)}. "
        f"{time.perf_counter() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
