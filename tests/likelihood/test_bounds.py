"""Variational bounds against entropies by summation, quadrature, and torch.distributions."""

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from score_sde import SDE, VESDE, VPSDE, DataSpec, GaussianMixture, SolverError, SubVPSDE
from score_sde.data import DataError
from score_sde.likelihood import continuous_bound, discrete_bound
from score_sde.sdes import ddpm_schedule
from score_sde.tensors import expand
from tests.oracles import BrokenScore, DoubleWellSDE, Recorder, mixture

LEVELS = 8
PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}


def ddpm(steps):
    """DDPM's betas, scaled so that a chain of any length destroys as much."""
    return ddpm_schedule(steps, 0.1 / steps, 20 / steps)


@dataclass(frozen=True)
class Lattice:
    """Probabilities ``(K,)`` of all points ``(K, dim)`` of a grid with 8 levels."""

    points: torch.Tensor
    probabilities: torch.Tensor

    @property
    def spec(self):
        return DataSpec((self.points.shape[1],), levels=LEVELS)

    @property
    def places(self):
        """The centres of the cells in model coordinates."""
        return (self.points + 0.5) / 4 - 1

    @property
    def surprisal(self):
        """-log2 P of each point, in bits per dimension."""
        return -self.probabilities.log2() / self.points.shape[1]

    @property
    def entropy(self):
        return (self.probabilities * self.surprisal).sum().item()

    def score(self, sde):
        return LatticeScore(self.places, self.probabilities, sde)

    def draw(self, count, seed=0):
        """Indices of ``count`` points of this distribution."""
        random = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.probabilities, count, replacement=True, generator=random)


@dataclass(frozen=True, eq=False)
class LatticeScore:
    """The exact score of noised point masses at the cells' centres: the posterior mean is a sum over all of them."""

    places: torch.Tensor
    probabilities: torch.Tensor
    sde: SDE
    dtype = torch.float64

    def __call__(self, x, t, cond=None):
        alpha, sigma = self.sde.alpha(t)[:, None].double(), self.sde.sigma(t)[:, None].double()
        match = (alpha * x @ self.places.T - alpha**2 * self.places.square().sum(1) / 2) / sigma**2
        return (alpha * (self.probabilities.log() + match).softmax(1) @ self.places - x) / sigma**2


def lattice(dim):
    """Two correlated normal lumps on the grid of 8^dim cells; in one dimension the entropy is 2.685 bits."""
    axes = torch.meshgrid(*[torch.arange(LEVELS, dtype=torch.float64)] * dim, indexing="ij")
    points = torch.stack(axes, -1).reshape(-1, dim)
    if dim == 1:
        edges = torch.linspace(-1, 1, LEVELS + 1, dtype=torch.float64)
        cell = lambda mean: Normal(mean, 0.2005).cdf(edges).diff()
        density = 0.4 * cell(-0.45) + 0.6 * cell(0.4)
    else:
        covariance = (0.04 * torch.eye(dim) + 0.03).double()
        means = torch.stack([torch.full((dim,), -0.35), torch.linspace(0.1, 0.5, dim)]).double()
        density = GaussianMixture(means, covariance.expand(2, dim, dim), [0.4, 0.6]).log_prob((points + 0.5) / 4 - 1).exp()
    return Lattice(points, density / density.sum())


def mean_over_the_model(truth, bound, sde, repeats, **options):
    """Mean and standard error of a bound over the model's own distribution: every point ``repeats`` times, weighted."""
    values = truth.points.repeat(repeats, 1)
    record = bound(truth.score(sde), values, data=truth.spec, batch_size=4096, **options)
    bits = torch.tensor(record.per_sample, dtype=torch.float64).reshape(repeats, -1)
    error = (truth.probabilities**2 * bits.var(0) / repeats).sum().sqrt()
    return (truth.probabilities @ bits.mean(0)).item(), error.item()


@lru_cache
def posterior_errors(sde, steps):
    """Of the one-dimensional lattice on a fine grid of noise: E (x0 - x0_hat)^2 at t_2 ... t_N, and x0_hat at t_1."""
    truth, places = lattice(1), lattice(1).places[:, 0]
    z, weight = noise_grid(truth)
    errors, first = [], None
    for k in range(1, steps + 1):
        alpha, sigma = float(sde.alpha(k * sde.T / steps)), float(sde.sigma(k * sde.T / steps))
        x = alpha * places[:, None] + sigma * z
        squares = (x[..., None] - alpha * places) ** 2
        guess = (truth.probabilities.log() - squares / (2 * sigma**2)).softmax(-1) @ places
        errors.append((weight * (places[:, None] - guess) ** 2).sum().item())
        first = guess if k == 1 else first
    return errors[1:], first


def noise_grid(truth):
    z = torch.linspace(-8.5, 8.5, 801, dtype=torch.float64)
    return z, truth.probabilities[:, None] * Normal(0.0, 1.0).log_prob(z).softmax(0)


def by_quadrature(sde, steps, v=0.0):
    """The discrete bound of the one-dimensional lattice in bits, every expectation over the noise a sum on a fine grid."""
    truth = lattice(1)
    places, weight = truth.places, noise_grid(truth)[1]
    nodes = torch.arange(1, steps + 1, dtype=torch.float64) * sde.T / steps
    alpha, variance = sde.alpha(nodes).tolist(), (sde.sigma(nodes) ** 2).tolist()
    errors, first = posterior_errors(sde, steps)
    snr = [a**2 / s for a, s in zip(alpha, variance, strict=True)]
    nats = snr[-1] / 2 * (truth.probabilities @ places[:, 0] ** 2).item()
    for k in range(1, steps):
        ratio = (variance[k] / variance[k - 1]) ** v
        nats += (math.log(ratio) + 1 / ratio - 1 + (snr[k - 1] - snr[k]) * errors[k - 1] / ratio) / 2
    beta = variance[1] - (alpha[1] / alpha[0]) ** 2 * variance[0]
    std = torch.tensor(math.sqrt(beta * variance[0] / variance[1]))
    upper, lower = places + 0.125, places - 0.125
    upper[-1], lower[0] = math.inf, -math.inf
    return (nats - (weight * between(lower, upper, first, std).log()).sum().item()) / math.log(2)


def between(lower, upper, mean, std):
    """The probability of an interval under N(mean, std^2), from the cdf of the side on which it does not cancel."""
    left = Normal(mean, std).cdf(upper) - Normal(mean, std).cdf(lower)
    right = Normal(-mean, std).cdf(-lower) - Normal(-mean, std).cdf(-upper)
    return torch.where(lower > mean, right, left).clamp_min(1e-300)


# the bounds of exact lattice models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "bits", "repeats"),
    [(100, 4.2, 300), (300, 3.0, 120), (1000, 2.8, 30), pytest.param(4000, 2.7, 30, marks=pytest.mark.slow)],
)
def test_the_chain_of_ddpm_on_eight_levels(steps, bits, repeats):
    """4.2, 3.0, 2.8 and 2.7 bits at 100, 300, 1,000 and 4,000 steps with beta-tilde; the entropy is 2.685 bits."""
    truth, sde = lattice(1), ddpm(steps)
    assert truth.entropy == pytest.approx(2.685, abs=5e-4)
    expected = by_quadrature(sde, steps)
    assert expected == pytest.approx(bits, abs=0.06)
    mean, error = mean_over_the_model(truth, discrete_bound, sde, repeats, steps=steps)
    assert abs(mean - expected) < 4 * error
    assert error < 0.15


@pytest.mark.parametrize("v", [0.0, 1.0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variance_and_sde_as_by_quadrature(name, v):
    truth, sde, variance = lattice(1), PUBLISHED[name], ("beta_tilde", "beta")[int(v)]
    expected = by_quadrature(sde, 100, v)
    assert expected > truth.entropy
    mean, error = mean_over_the_model(truth, discrete_bound, sde, 100, steps=100, variance=variance)
    assert abs(mean - expected) < 4 * error
    assert error < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_chain_falls_toward_the_entropy(name):
    """By quadrature, which the sums above agree with; beta-tilde, right for a point, wins as the steps become small."""
    truth, sde = lattice(1), PUBLISHED[name]
    small, large = ([by_quadrature(sde, steps, v) for steps in (100, 300, 1000)] for v in (0.0, 1.0))
    assert small[0] > small[1] > small[2] > truth.entropy
    assert small[2] - truth.entropy < 0.1
    assert large[2] > small[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_bounds_in_one_to_four_dimensions(dim, name):
    """Sample by sample the bound less -log2 P, which has the entropy's mean over the model: above it, and close."""
    truth, sde = lattice(dim), PUBLISHED[name]
    chosen = truth.draw({1: 1000, 2: 1000, 3: 500, 4: 200}[dim])
    values, exact = truth.points[chosen], truth.surprisal[chosen]
    options = {"data": truth.spec, "batch_size": 4096}

    def gap(record):
        difference = torch.tensor(record.per_sample, dtype=torch.float64) - exact
        return difference.mean().item(), difference.std().item() / len(difference) ** 0.5

    continuous, noise = gap(continuous_bound(truth.score(sde), values, times=60, **options))
    assert abs(continuous) < 4 * noise
    assert noise < 0.08
    coarse, noise = gap(discrete_bound(truth.score(sde), values, steps=50, **options))
    assert coarse > 4 * noise


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_continuous_bound_meets_the_entropy_closely(dim):
    """For an exact score, and noise at t_min far below a bin, it is the entropy but for a prior term of 1e-5 bits."""
    truth, count = lattice(dim), 2000
    chosen = truth.draw(count)
    record = continuous_bound(truth.score(VPSDE()), truth.points[chosen], data=truth.spec, times=400, batch_size=500)
    difference = torch.tensor(record.per_sample, dtype=torch.float64) - truth.surprisal[chosen]
    noise = difference.std().item() / count**0.5
    assert abs(difference.mean().item()) < 4 * noise
    assert noise < 0.03


def test_log_snr_nodes_make_a_short_chain_better():
    truth, sde = lattice(1), VPSDE()
    ends = [float(sde.log_snr(t)) for t in (sde.t_min, sde.T)]
    nodes = sde.inverse_log_snr(torch.linspace(*ends, 100, dtype=torch.float64)).clamp(sde.t_min, sde.T)
    record = discrete_bound(truth.score(sde), truth.points, data=truth.spec, nodes=nodes)
    assert (record.steps, record.times) == (100, 99)
    mean, error = mean_over_the_model(truth, discrete_bound, sde, 100, nodes=nodes)
    assert truth.entropy - 4 * error < mean < by_quadrature(sde, 100) - 4 * error


# the terms


@dataclass(frozen=True, eq=False)
class Witness:
    """A score, with a learned v where one is given, that keeps the points and times at which it was asked."""

    inner: object
    seen: list
    v: float | None = None

    @property
    def sde(self):
        return self.inner.sde

    @property
    def dtype(self):
        return self.inner.dtype

    def __call__(self, x, t, cond=None):
        score = self.inner(x, t, cond)
        self.seen.append((x, t, score))
        return score

    def score_and_variance(self, x, t, ends, cond=None):
        low, high = (expand(end, x) for end in ends)
        return self(x, t, cond), low + self.v * (high - low) + 0 * x


@pytest.mark.parametrize(("variance", "v"), [("beta_tilde", 0.0), ("beta", 1.0), ("learned", 0.3)])
def test_terms_are_divergences_of_gaussians(sde, variance, v):
    """Means and variances of q(x_s | x_t, x0) and of the model's step, written out, in torch.distributions."""
    spec, values = DataSpec((2, 3), levels=5), torch.randint(0, 5, (4, 2, 3))
    seen, nodes = [], torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    model = Witness(mixture((2, 3)).score(sde), seen, v)
    record = discrete_bound(model, values, data=spec, nodes=nodes, variance=variance)
    x0 = -1 + (values.double() + 0.5) * 2 / 5
    alpha, sigma = sde.alpha(nodes), sde.sigma(nodes)
    last = Normal(alpha[2] * x0, sigma[2])
    unit = 4 * 6 * math.log(2)
    assert record.prior == pytest.approx(kl_divergence(last, Normal(0.0, sigma[2])).sum().item() / unit)

    ratio = alpha[1:] / alpha[:-1]
    betas = sigma[1:] ** 2 - ratio**2 * sigma[:-1] ** 2
    shrunk = betas * sigma[:-1] ** 2 / sigma[1:] ** 2
    total = 0.0
    for x, t, score in seen:
        guess = (x + sde.sigma(t[0]) ** 2 * score) / sde.alpha(t[0])
        k = (nodes - t[0]).abs().argmin().item() - 1
        if k < 0:
            first = guess
        else:
            noised, known = ratio[k] * sigma[k] ** 2 * x / sigma[k + 1] ** 2, alpha[k] * betas[k] / sigma[k + 1] ** 2
            exact = Normal(noised + known * x0, shrunk[k].sqrt())
            step = Normal(noised + known * guess, (betas[k] ** v * shrunk[k] ** (1 - v)).sqrt())
            total += kl_divergence(exact, step).sum().item()
    assert record.diffusion == pytest.approx(total / unit, rel=1e-6)

    upper = torch.where(values == 4, math.inf, x0 + 0.2)
    lower = torch.where(values == 0, -math.inf, x0 - 0.2)
    w = v if variance == "learned" else 0.0  # a fixed variance decodes with beta_tilde, as DDPM's code
    bins = between(lower, upper, first, (sigma[0] ** (2 * w) * shrunk[0] ** (1 - w)).sqrt())
    assert record.reconstruction == pytest.approx(-bins.log().sum().item() / unit, rel=1e-6)
    assert record.mean == pytest.approx(record.prior + record.diffusion + record.reconstruction)


@pytest.mark.parametrize(("v", "fixed"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_learned_variance_at_its_ends_is_the_fixed_one(v, fixed):
    truth = lattice(2)
    model = Witness(truth.score(VPSDE()), [], v)
    options = {"data": truth.spec, "steps": 20}
    learned = discrete_bound(model, truth.points, variance="learned", **options)
    given = discrete_bound(model, truth.points, variance=fixed, **options)
    assert learned.diffusion == pytest.approx(given.diffusion)
    assert learned.nfe == given.nfe == 20
    assert (learned.reconstruction == pytest.approx(given.reconstruction)) == (v == 0)  # the decoder of beta has beta_tilde


@dataclass(frozen=True, eq=False)
class NoScore:
    """The score 0, whose x0_hat is x / alpha: the error of the noise is the noise, and every term is known."""

    sde: SDE
    dtype = torch.float64

    def __call__(self, x, t, cond=None):
        return torch.zeros_like(x)


def test_expectations_in_closed_form(sde):
    """E e^2 = 1: with beta-tilde half the sum of SNR_s / SNR_t - 1, in continuous time half the range of log-SNR."""
    spec, values = DataSpec((50,), levels=4), torch.zeros(200, 50, dtype=torch.long)
    nodes = torch.linspace(0.3, 0.9, 12, dtype=torch.float64) * sde.T
    snr = (sde.alpha(nodes) / sde.sigma(nodes)) ** 2
    chain = ((snr[:-1] / snr[1:] - 1).sum() / 2 / math.log(2)).item()
    integral = ((sde.log_snr(sde.t_min) - sde.log_snr(sde.T)) / 2 / math.log(2)).item()
    options = {"data": spec, "draws": 2}
    for expected, record in (
        (chain, discrete_bound(NoScore(sde), values, nodes=nodes, **options)),
        (chain, discrete_bound(NoScore(sde), values, nodes=nodes, sampled_steps=4, **options)),
        (integral, continuous_bound(NoScore(sde), values, times=5, **options)),
    ):
        rest = torch.tensor(record.per_sample, dtype=torch.float64).std().item()
        assert abs(record.diffusion - expected) < 4 * rest / 200**0.5
        assert rest / 200**0.5 < 0.05 * expected


def test_sampled_steps_leave_the_bound_where_it_is():
    truth = lattice(1)
    every, error = mean_over_the_model(truth, discrete_bound, VPSDE(), 100, steps=200)
    some, noise = mean_over_the_model(truth, discrete_bound, VPSDE(), 400, steps=200, sampled_steps=25, seed=1)
    assert abs(every - some) < 4 * math.hypot(error, noise)


def test_monte_carlo_errors_are_those_of_repeated_draws():
    """One point many times over, sampled with ten draws each: their spread is the error that each of them states."""
    truth = lattice(2)
    values = torch.tensor([[2, 3]]).expand(150, 2)
    for bound, options in ((continuous_bound, {"times": 20}), (discrete_bound, {"steps": 40, "sampled_steps": 10})):
        record = bound(truth.score(VESDE()), values, data=truth.spec, draws=10, batch_size=500, **options)
        stated = torch.tensor(record.per_sample_stderr).square().mean().sqrt().item()
        found = torch.tensor(record.per_sample).std().item()
        assert stated == pytest.approx(found, rel=0.35)
        assert record.monte_carlo == pytest.approx(stated / 150**0.5, rel=1e-4)
        assert f"10 draws with a Monte-Carlo error of {record.monte_carlo:.4f}" in record.sentence()
    assert bound(truth.score(VESDE()), values[:3], data=truth.spec, **options).per_sample_stderr is None


@pytest.mark.parametrize("dequantize", [True, False])
def test_integers_stand_at_the_centres_of_their_bins(dequantize):
    """A level on its own is certain where the model knows it, whichever way the data is scaled."""
    spec = DataSpec((1,), levels=17, dequantize=dequantize)
    values = torch.arange(17)[:, None]
    places = (values.double() + 0.5) / 8.5 - 1 if dequantize else values.double() / 8 - 1
    model = GaussianMixture(places, torch.zeros(17)).score(VPSDE())
    record = continuous_bound(model, values.repeat(60, 1), data=spec, times=100, batch_size=2000)
    assert abs(record.mean - math.log2(17)) < 4 * record.stderr
    assert record.stderr < 0.1
    moved = GaussianMixture(places + 0.03, torch.zeros(17)).score(VPSDE())
    assert continuous_bound(moved, values, data=spec).mean > 100


def test_reconstruction_in_continuous_time_is_a_softmax_over_the_levels():
    """At noise as large as a bin: the posterior over the levels, coordinate by coordinate, at the noise that was drawn."""
    spec, sde = DataSpec((2,), levels=6), VESDE(sigma_min=0.2)
    values = torch.randint(0, 6, (4000, 2))
    record = continuous_bound(NoScore(sde), values, data=spec, times=1, batch_size=4000)
    places, sigma = (torch.arange(6) + 0.5) / 3 - 1, float(sde.sigma(sde.t_min))
    x0 = places[values].double()
    shares = -(((x0 + sigma * torch.randn_like(x0))[..., None] - places) ** 2) / (2 * sigma**2)
    nats = -shares.log_softmax(-1).gather(-1, values[..., None])[..., 0].mean(1)
    assert record.reconstruction == pytest.approx(nats.mean().item() / math.log(2), abs=4 * nats.std().item() / 40)


# shapes, batches, dtypes


BOUNDS = {
    "all steps": (discrete_bound, {"steps": 10}),
    "sampled steps": (discrete_bound, {"steps": 30, "sampled_steps": 6, "draws": 2}),
    "continuous": (continuous_bound, {"times": 6, "draws": 2}),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_every_sample_once_whatever_the_batch(name):
    bound, options = BOUNDS[name]
    spec, values = DataSpec((3,), levels=5), torch.randint(0, 5, (11, 3))
    model = mixture((3,)).score(VPSDE())
    whole = bound(model, values, data=spec, **options)
    parts = bound(model, values, data=spec, batch_size=4, **options)
    assert whole.samples == parts.samples == 11
    assert parts.per_sample == pytest.approx(whole.per_sample, rel=1e-9)
    assert parts.nfe == pytest.approx(whole.nfe)
    other = bound(model, values, data=spec, seed=1, **options)
    assert all(abs(a - b) > 1e-9 for a, b in zip(other.per_sample, whole.per_sample, strict=True))


@pytest.mark.parametrize("name", BOUNDS)
def test_any_rank(name, sde):
    """The same twelve coordinates in events of one to four dimensions."""
    bound, options = BOUNDS[name]
    values, flat = torch.randint(0, 5, (3, 12)), mixture((12,))
    covariance = flat.basis @ torch.diag_embed(flat.variances) @ flat.basis.mT
    found = []
    for event in ((12,), (3, 4), (2, 3, 2), (1, 2, 2, 3)):
        model = GaussianMixture(flat.means.reshape(-1, *event), covariance, flat.weights).score(sde)
        record = bound(model, values.reshape(3, *event), data=DataSpec(event, levels=5), **options)
        assert math.isfinite(record.mean)
        found.append(record.per_sample)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("name", BOUNDS)
def test_float32_agrees_with_float64_within_its_noise(name):
    bound, options = BOUNDS[name]
    spec, values = DataSpec((3,), levels=5), torch.randint(0, 5, (1, 3)).expand(400, 3)
    records = [
        bound(mixture((3,), dtype).score(VPSDE()), values, data=spec, **options) for dtype in (torch.float32, torch.float64)
    ]
    assert abs(records[0].mean - records[1].mean) < 4 * math.hypot(records[0].stderr, records[1].stderr)


@pytest.mark.parametrize("name", BOUNDS)
def test_evaluations_are_counted_and_stay_in_range(name, sde):
    bound, options = BOUNDS[name]
    seen = []
    record = bound(Recorder(mixture((3,)).score(sde), seen), torch.zeros(5, 3), data=DataSpec((3,), levels=5), **options)
    assert record.nfe == len(seen) == {"all steps": 10, "sampled steps": 14, "continuous": 12}[name]
    assert min(seen) >= sde.t_min * (1 - 1e-6)
    assert max(seen) <= sde.T


def test_a_table_of_betas_is_evaluated_at_its_own_nodes():
    for sde, nodes in ((ddpm_schedule(40), range(1, 41)), (ddpm_schedule(40).respaced("ddim10"), range(1, 41, 4))):
        seen = []
        record = discrete_bound(Recorder(mixture((3,)).score(sde), seen), torch.zeros(2, 3), data=DataSpec((3,), levels=5))
        assert sorted(seen) == pytest.approx([k / 40 for k in nodes])
        assert record.steps == len(nodes)


@pytest.mark.parametrize("name", BOUNDS)
def test_conditional_bound_is_that_of_the_component(name):
    bound, options = BOUNDS[name]
    truth, values = mixture((3,)), torch.randint(0, 5, (6, 3))
    covariance = (truth.basis @ torch.diag_embed(truth.variances) @ truth.basis.mT)[2:3]
    alone = GaussianMixture(truth.means[2:3], covariance).score(VPSDE())
    options = {"data": DataSpec((3,), levels=5), "batch_size": 4, **options}
    given = bound(truth.score(VPSDE()), values, cond=torch.full((6,), 2), **options)
    assert given.per_sample == pytest.approx(bound(alone, values, **options).per_sample, rel=1e-6)


def test_record_says_how_it_was_obtained(tmp_path):
    model, values, spec = mixture((3,)).score(VPSDE()), torch.zeros(4, 3), DataSpec((3,), levels=5)
    record = discrete_bound(model, values, data=spec, steps=30, sampled_steps=6, seed=7)
    for said in (f"{record.mean:.4f}", "4 samples", "5 levels", "30 steps", "6 of them", "beta_tilde", "7 network", "seed 7"):
        assert said in record.sentence()
    record.save(tmp_path / "record.json", {"step": 3})
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved["per_sample"] == list(record.per_sample)
    assert saved["step"] == 3
    sentence = continuous_bound(model, values, data=spec, times=9).sentence()
    for said in ("continuous time from t_min = 1e-05", "9 times of uniform log-SNR", "9 network"):
        assert said in sentence


# what is refused


@pytest.mark.parametrize(
    ("bound", "options", "message"),
    [
        (discrete_bound, {"data": None}, "data=DataSpec"),
        (continuous_bound, {"data": None}, "data=DataSpec"),
        (discrete_bound, {"data": DataSpec((3,))}, "these bounds are for integers"),
        (discrete_bound, {"variance": "small"}, "choose one of beta_tilde, beta, learned"),
        (discrete_bound, {"variance": "learned"}, "no score_and_variance"),
        (discrete_bound, {"steps": 1}, "steps must be at least 2"),
        (discrete_bound, {"steps": 200_000}, "at most 100000 steps"),
        (discrete_bound, {"nodes": torch.tensor([0.5, 0.2])}, "rising times"),
        (discrete_bound, {"nodes": torch.tensor([0.5])}, "two or more"),
        (discrete_bound, {"nodes": torch.tensor([1e-6, 0.5])}, "between t_min"),
        (discrete_bound, {"nodes": torch.tensor([0.5, 1.5])}, "between t_min"),
        (discrete_bound, {"nodes": torch.tensor([0.5, math.nan])}, "rising times"),
        (discrete_bound, {"steps": 10, "sampled_steps": 10}, "between 1 and 9"),
        (discrete_bound, {"sampled_steps": 0}, "between 1 and 999"),
        (discrete_bound, {"draws": 0}, "draws must be at least 1"),
        (continuous_bound, {"batch_size": 0}, "batch_size must be at least 1"),
        (continuous_bound, {"times": 0}, "times must be at least 1"),
        (continuous_bound, {"cond": torch.zeros(3)}, "one condition for each of 2 samples, got the shape"),
    ],
)
def test_bad_options_are_refused(bound, options, message):
    with pytest.raises(ValueError, match=message):
        bound(mixture((3,)).score(VPSDE()), torch.zeros(2, 3), **{"data": DataSpec((3,), levels=5), **options})


@pytest.mark.parametrize("bound", [discrete_bound, continuous_bound])
@pytest.mark.parametrize(("value", "message"), [(5, "from 5 to 5"), (0.5, "fractions"), (math.nan, "NaN")])
def test_data_that_does_not_fit_is_refused(bound, value, message):
    with pytest.raises(DataError, match=message):
        bound(mixture((3,)).score(VPSDE()), torch.full((2, 3), value), data=DataSpec((3,), levels=5))


@pytest.mark.parametrize("bound", [discrete_bound, continuous_bound])
def test_nan_is_a_named_error(bound):
    score = BrokenScore(mixture((3,)).score(VPSDE()), lambda t: t > 0.5)
    with pytest.raises(SolverError, match=r"not finite at t = (0\.[5-9]|1)"):
        bound(score, torch.zeros(2, 3), data=DataSpec((3,), levels=5))


@pytest.mark.parametrize("bound", [discrete_bound, continuous_bound])
def test_an_sde_without_a_marginal_is_refused(bound):
    with pytest.raises(TypeError, match="not linear in x"):
        bound(NoScore(DoubleWellSDE()), torch.zeros(2, 3), data=DataSpec((3,), levels=5))
