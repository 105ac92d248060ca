"""Ancestral sampling against DDPM's table, SMLD's formula, DDIM, exact posteriors and diffusers."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from score_sde import DDIM, VESDE, VPSDE, DataSpec, ScoreModel
from score_sde.networks import UNet
from score_sde.score import BoundScore, ClassScore, posterior_mean
from score_sde.sdes import ddpm_schedule
from score_sde.solvers.ancestral import Ancestral
from score_sde.solvers.time_grids import ExplicitGrid
from score_sde.tensors import SampleNoise, expand
from score_sde.transitions import VARIANCES, forward_transition
from tests.oracles import SDE_CASES, affine_moments, gaussian, mixture


@dataclass(frozen=True, eq=False)
class WithVariance:
    """A score with a learned variance of its own, by v, and how often either was asked for."""

    inner: object
    v: object
    calls: list

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        self.calls.append("score")
        return self.inner(x, t, cond)

    def score_and_variance(self, x, t, ends, cond=None):
        self.calls.append("both")
        low, high = ends
        return self.inner(x, t, cond), low + torch.as_tensor(self.v).to(x).expand(x.shape) * (high - low)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("respacing", ["", "7", "3,5", "ddim8"])
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_chain_of_ddpm(variance, respacing):
    """Ho et al. 2020, Algorithm 2, written with the discrete table; the last step adds nothing."""
    sde = ddpm_schedule(betas=tuple(np.linspace(1e-3, 0.3, 40)), t_min=1 / 40, respacing=respacing)
    count, betas = len(sde.betas), np.array(sde.betas)
    kept = np.cumprod(1 - betas)
    score = mixture().score(sde)
    nodes = sde.nodes().flip(0).tolist()
    solver = Ancestral(count, ExplicitGrid((*nodes, 0.0)) if respacing else "uniform", variance=variance)
    noise, again = (SampleNoise(3, (4, 2), dtype=torch.float64) for _ in range(2))
    found = expected = torch.randn(4, 2, dtype=torch.float64)
    times = solver.times(sde, nodes[0], 0.0)
    for k, (t, s) in zip(range(count - 1, -1, -1), pairwise(times), strict=True):
        assert float(forward_transition(sde, s, t)[1]) == pytest.approx(betas[k], rel=1e-9)
        epsilon = -math.sqrt(1 - kept[k]) * score(expected, t.expand(4))
        expected = (expected - betas[k] / math.sqrt(1 - kept[k]) * epsilon) / math.sqrt(1 - betas[k])
        if k > 0:
            smaller = (1 - kept[k - 1]) / (1 - kept[k]) * betas[k]
            expected = expected + math.sqrt(betas[k] if variance == "beta" else smaller) * again.normal()
        found = solver.move(BoundScore(score), found, t, s, noise)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_table_can_be_sampled_whole():
    """All N steps down to 0 are N - 1 steps down to T / N and the posterior mean there."""
    sde = ddpm_schedule(20, beta_end=0.3, t_min=1 / 20)
    score, x = mixture().score(sde), torch.randn(3, 2, dtype=torch.float64)
    whole = Ancestral(steps=20).solve(score, x, 1.0, 0.0)
    sample = Ancestral(steps=19).sample(score, x_T=x, denoise=True)
    assert sample.nfe == 20
    parts = Ancestral(steps=19).solve(score, x, 1.0, 1 / 20)
    torch.testing.assert_close(whole, posterior_mean(BoundScore(score), parts, 1 / 20))


def test_smld():
    """Song et al. 2021, Eq. 47, with geometric sigmas."""
    sigmas, sde = np.geomspace(20, 0.05, 26), VESDE(sigma_min=0.05, sigma_max=20.0)
    score = mixture().score(sde)
    noise, again = (SampleNoise(3, (4, 2), dtype=torch.float64) for _ in range(2))
    found = expected = 20 * torch.randn(4, 2, dtype=torch.float64)
    times = torch.linspace(1, 0, 26, dtype=torch.float64)[:-1]
    for k, (t, s) in enumerate(pairwise(times)):
        removed = sigmas[k] ** 2 - sigmas[k + 1] ** 2
        noisy = math.sqrt(sigmas[k + 1] ** 2 * removed / sigmas[k] ** 2)
        expected = expected + removed * score(expected, t.expand(4)) + noisy * again.normal()
        found = Ancestral().move(BoundScore(score), found, t, s, noise)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_smaller_variance_is_ddim_at_eta_1(sde):
    score = mixture().score(sde)
    found = Ancestral(steps=30).sample(score, (4, 2), seed=2, trajectory=True).trajectory
    expected = DDIM(steps=30, eta=1.0).sample(score, (4, 2), seed=2, trajectory=True).trajectory
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_smaller_variance_is_exact_for_a_point(sde):
    """The law of x_s given x_t and the data, by conditioning in the joint Gaussian."""
    t, s = 0.8 * sde.T, 0.1 * sde.T
    gain = sde.alpha(t) / sde.alpha(s) * sde.sigma(s) ** 2 / sde.sigma(t) ** 2
    expected = sde.alpha(s) * 0.5 + gain * (1.1 - sde.alpha(t) * 0.5)
    mean, variance = affine_moments(Ancestral(steps=1), gaussian(0.5, 0.0).score(sde), 1.1, 0.0, t, s)
    assert mean == pytest.approx(float(expected))
    assert variance == pytest.approx(float(sde.sigma(s) ** 2 - gain * sde.alpha(t) / sde.alpha(s) * sde.sigma(s) ** 2))


@pytest.mark.parametrize("name", ["vp", "ddpm", "cosine", "snr"])
def test_the_larger_variance_is_exact_for_a_standard_normal(name):
    """x_t is then N(0, 1) at all times, with correlation a between s and t: x_s given x_t is N(a x_t, 1 - a^2)."""
    sde = SDE_CASES[name]
    a = float(sde.alpha(0.8) / sde.alpha(0.3))
    mean, variance = affine_moments(Ancestral(steps=1, variance="beta"), gaussian(0.0, 1.0).score(sde), 1.1, 0.0, 0.8, 0.3)
    assert mean == pytest.approx(1.1 * a)
    assert variance == pytest.approx(1 - a**2)


# learned


def test_a_learned_variance_lies_between_the_two_in_the_logarithm(sde):
    """v of 0, 1 and 0.3 in three coordinates."""
    t, s = double(0.7 * sde.T, 0.5 * sde.T)
    inner, x = mixture((3,)).score(sde), torch.randn(2, 3, dtype=torch.float64)
    spread = {}
    for variance in VARIANCES:
        score = WithVariance(inner, double(0.0, 1.0, 0.3), [])
        solver = Ancestral(variance=variance)
        moved = [solver.move(BoundScore(score), x, t, s, Constant(z)) for z in (1.0, 0.0)]
        spread[variance] = (moved[0] - moved[1])[0] ** 2
        assert score.calls == 2 * ["both" if variance == "learned" else "score"]
    small, large = spread["beta_tilde"], spread["beta"]
    expected = torch.stack([small[0], large[1], small[2] ** 0.7 * large[2] ** 0.3])
    torch.testing.assert_close(spread["learned"], expected)
    assert (small < 0.999 * large).all()


class Constant:
    """In place of noise: a number."""

    def __init__(self, value):
        self.value = value

    def normal(self):
        return self.value


@pytest.mark.parametrize("v", [-0.5, 0.0, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.covering(1)
def test_a_learned_variance_is_finite_down_to_the_end(sde, v, dtype):
    score = WithVariance(mixture(dtype=dtype).score(sde), v, [])
    for grid in ("uniform", "log_snr"):
        drawn = Ancestral(steps=30, grid=grid, variance="learned").sample(score, (3, 2), dtype=dtype)
        assert drawn.x.isfinite().all()
        assert drawn.x.dtype == dtype


@pytest.mark.parametrize("name", ["vp", "subvp", "cosine"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_to_the_data_is_its_posterior_mean(name, variance):
    sde = SDE_CASES[name]
    score = BoundScore(WithVariance(mixture().score(sde), 0.5, []))
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    noise = SampleNoise(0, x.shape, dtype=torch.float64)
    found = Ancestral(variance=variance).move(score, x, t, torch.zeros_like(t), noise)
    torch.testing.assert_close(found, posterior_mean(score, x, t))


def test_a_model_is_sampled_by_one_pass_a_step():
    model = learned_model()
    passes = []
    model.network.register_forward_hook(lambda *_: passes.append(1))
    solver = Ancestral(steps=5, variance="learned")
    drawn = solver.sample(model, (2, 1, 8, 8))
    assert drawn.nfe == len(passes) == 5
    assert not torch.equal(drawn.x, Ancestral(steps=5).sample(model, (2, 1, 8, 8)).x)
    clipped = solver.sample(model, (2, 1, 8, 8), clip=(-0.2, 0.1), denoise=True)
    assert clipped.nfe == 6
    assert clipped.x.min() >= -0.2 - 1e-5
    assert clipped.x.max() <= 0.1 + 1e-5


def test_a_class_has_its_own_variance():
    model = learned_model(classes=2)
    solver = Ancestral(steps=4, variance="learned")
    expected = solver.sample(model, (2, 1, 8, 8), cond=torch.tensor([1, 1]))
    found = solver.sample(ClassScore(model, 1), (2, 1, 8, 8))
    assert torch.equal(found.x, expected.x)
    assert found.nfe == 4
    assert not torch.equal(found.x, solver.sample(ClassScore(model, 0), (2, 1, 8, 8)).x)


def learned_model(**options):
    network = UNet((1, 8, 8), width=8, multipliers=(1,), attention=(), learned_variance=True, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return ScoreModel(network, VPSDE(), DataSpec((1, 8, 8), levels=256)).eval()


def test_a_score_without_a_learned_variance_is_refused():
    solver = Ancestral(steps=3, variance="learned")
    for score in (mixture().score(VPSDE()), ClassScore(mixture().score(VPSDE()), 0)):
        with pytest.raises(TypeError, match=r"MixtureScore has no learned variance.*choose"):
            solver.sample(score, (2, 2))
    network = UNet((1, 8, 8), width=8, multipliers=(1,), attention=())
    with pytest.raises(TypeError, match="no learned variance"):
        solver.sample(ScoreModel(network, VPSDE(), DataSpec((1, 8, 8), levels=256)), (2, 1, 8, 8))


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="unknown variance 'small'; choose one of beta_tilde, beta, learned"):
        Ancestral(variance="small")


# another library


@dataclass(frozen=True, eq=False)
class Field:
    """A score and a v made of smooth functions, which diffusers can be given as well."""

    sde: object

    def epsilon(self, x, t):
        return torch.sin(2 * x + 3 * expand(t, x)) + 0.2 * x

    def v(self, x, t):
        return torch.sigmoid(x + expand(t, x))

    def __call__(self, x, t, cond=None):
        return -self.epsilon(x, t) / expand(self.sde.sigma(t), x)

    def score_and_variance(self, x, t, ends, cond=None):
        return self(x, t), ends[0] + self.v(x, t) * (ends[1] - ends[0])


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize(("steps", "of"), [(30, 30), (10, 100)])
def test_the_samples_of_diffusers(kind, steps, of, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddpm

    betas = np.linspace(1e-3, 0.2, of).tolist()
    scheduler = diffusers.DDPMScheduler(of, trained_betas=betas, variance_type=kind, clip_sample=False)
    scheduler.set_timesteps(steps)
    field = Field(ddpm_schedule(betas=tuple(betas), t_min=1 / of))
    noise, again = (SampleNoise(5, (3, 2, 4, 4), dtype=torch.float64) for _ in range(2))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: again.normal())
    start = expected = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    for label in scheduler.timesteps:
        t = ((label.double() + 1) / of).expand(3)
        output = field.epsilon(expected, t)
        if kind == "learned_range":
            output = torch.cat([output, 2 * field.v(expected, t) - 1], 1)
        expected = scheduler.step(output, int(label), expected).prev_sample
    nodes = [(int(label) + 1) / of for label in scheduler.timesteps]
    variance = {"fixed_small": "beta_tilde", "fixed_large": "beta", "learned_range": "learned"}[kind]
    solver = Ancestral(grid=ExplicitGrid((*nodes, 0.0)), variance=variance)
    assert solver.steps == steps
    found = solver.solve(field, start, nodes[0], 0.0, noise=noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
