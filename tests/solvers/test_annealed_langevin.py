"""Annealed Langevin dynamics: the algorithms of its papers, their theory, and where it goes."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from score_sde import VESDE
from score_sde.score import BoundScore
from score_sde.solvers.annealed_langevin import AnnealedLangevin, suitable_snr
from score_sde.solvers.time_grids import ExplicitGrid
from score_sde.tensors import SampleNoise
from tests.oracles import PUBLISHED, SDE_CASES, BatchNoise, Recorder, affine_moments, exact_moments, gaussian, mixture


@pytest.mark.parametrize("year", [2019, 2020])
def test_the_algorithms_of_the_papers(year):
    """Song and Ermon 2019, Algorithm 1: x + a/2 score + sqrt(a) z; 2020, Algorithm 1: x + a score + sqrt(2 a) z; each with
    a = epsilon sigma_i^2 / sigma_L^2 and T steps at each of geometric sigmas."""
    sigmas, steps = np.geomspace(20, 0.05, 9), 3
    epsilon = 0.15 * sigmas[-1] ** 2
    snr = {2019: math.sqrt(epsilon) / (2 * sigmas[-1]), 2020: math.sqrt(epsilon / 2) / sigmas[-1]}[year]
    sde = VESDE(sigma_min=0.05 / 400**0.125, sigma_max=20.0)
    score = mixture().score(sde)
    nodes = torch.linspace(1, 1 / 9, 9, dtype=torch.float64)
    sigma = sde.sigma(nodes)
    torch.testing.assert_close(sigma, torch.from_numpy(sigmas), rtol=1e-9, atol=0)
    noise, again = (SampleNoise(3, (4, 2), dtype=torch.float64) for _ in range(2))
    found = expected = 20 * torch.randn(4, 2, dtype=torch.float64)
    solver = AnnealedLangevin(corrections=steps, snr=snr)
    for t, s in pairwise(nodes):
        found = solver.move(BoundScore(score), found, t, s, noise)
        size = epsilon * float(sde.sigma(s)) ** 2 / sigmas[-1] ** 2
        for _ in range(steps):
            gradient, z = score(expected, s.expand(4)), again.normal()
            if year == 2019:
                expected = expected + size / 2 * gradient + math.sqrt(size) * z
            else:
                expected = expected + size * gradient + math.sqrt(2 * size) * z
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_variance_is_that_of_the_proposition(sde):
    """Song and Ermon 2020, Proposition 3, from level to level on data at one point: s_T^2 / sigma^2 is

        (1 - e)^(2 T) (gamma^2 - 2 e / (1 - (1 - e)^2)) + 2 e / (1 - (1 - e)^2),   e = epsilon / sigma_L^2 = 2 snr^2,

    with gamma^2 times what the last level left in place of gamma^2.
    """
    solver, e, steps = AnnealedLangevin(steps=40, corrections=3, snr=0.3), 2 * 0.3**2, 3
    score, times = gaussian(0.7, 0.0).score(sde), solver.times(sde, sde.T, sde.t_min)
    ratio, settled = 1.0, 2 * e / (1 - (1 - e) ** 2)
    for t, s in pairwise(times):
        gamma = float(sde.sigma(t) / sde.alpha(t) / (sde.sigma(s) / sde.alpha(s)))
        ratio = (1 - e) ** (2 * steps) * (gamma**2 * ratio - settled) + settled
    mean, variance = affine_moments(solver, score, *exact_moments(sde, sde.T, 0.7, 0.0), sde.T, sde.t_min, draws=steps)
    assert variance == pytest.approx(ratio * float(sde.sigma(sde.t_min)) ** 2, rel=1e-5)
    assert mean == pytest.approx(float(sde.alpha(sde.t_min)) * 0.7, rel=1e-5)


@pytest.mark.parametrize("corrections", [1, 5])
def test_no_other_snr_keeps_up_better(corrections):
    """The default snr on VE with all data at one point: others, larger or smaller, leave more variance."""
    sde = SDE_CASES["ve"]
    score, start = gaussian(0.0, 0.0).score(sde), exact_moments(sde, sde.T, 0.0, 0.0)

    def variance(snr):
        solver = AnnealedLangevin(steps=100, corrections=corrections, snr=snr)
        return affine_moments(solver, score, *start, sde.T, sde.t_min, draws=corrections)[1]

    rise = 2 * math.log(float(sde.sigma(sde.T) / sde.sigma(sde.t_min))) / 100
    best = suitable_snr(rise, corrections)
    assert variance(0.0) == pytest.approx(variance(best), rel=1e-6)
    assert all(variance(0.0) < variance(factor * best) for factor in (0.7, 0.9, 1.1, 1.4))


def test_the_setting_of_the_second_paper():
    """Its epsilon of 6.2e-6 for sigma from 50 to 0.01 in 232 levels of 5 steps, an snr of 0.18, leaves little more variance."""
    sde = SDE_CASES["ve"]
    score, start = gaussian(0.0, 0.0).score(sde), exact_moments(sde, sde.T, 0.0, 0.0)
    published, own = (
        affine_moments(AnnealedLangevin(snr=snr), score, *start, sde.T, sde.t_min, draws=5)[1]
        / float(sde.sigma(sde.t_min)) ** 2
        for snr in (math.sqrt(6.2e-6 / 2) / 0.01, 0.0)
    )
    assert own == pytest.approx(1.10, abs=0.005)
    assert own < published < 1.15


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_variance_of_gaussian_data_converges(name):
    """At four times the evaluations the excess is half as large or less; the mean is right throughout."""
    sde, excess = SDE_CASES[name], []
    for levels in (116, 464):
        solver = AnnealedLangevin(steps=levels)
        start = exact_moments(sde, sde.T)
        mean, variance = affine_moments(solver, gaussian().score(sde), *start, sde.T, sde.t_min, draws=5)
        expected_mean, expected = map(float, exact_moments(sde, sde.t_min))
        assert mean == pytest.approx(expected_mean, rel=1e-5)
        excess.append(variance / expected - 1)
    assert 0 < excess[1] < 0.52 * excess[0]
    assert excess[1] < 0.13


@dataclass(frozen=True, eq=False)
class NoPull:
    """The score 0."""

    sde: object

    def __call__(self, x, t, cond=None):
        return torch.zeros_like(x)


class NoNoise:
    """In place of noise: none."""

    def normal(self):
        return 0.0


def test_the_data_keeps_its_factor_between_levels(sde):
    """Without score and noise a state alpha_t x0 becomes alpha_s x0."""
    t, s = torch.tensor([0.8 * sde.T, 0.3 * sde.T], dtype=torch.float64)
    x0 = torch.randn(3, 2, dtype=torch.float64)
    moved = AnnealedLangevin().move(BoundScore(NoPull(sde)), sde.alpha(t) * x0, t, s, NoNoise())
    torch.testing.assert_close(moved, sde.alpha(s) * x0)


def test_levels_are_visited_in_turn(sde):
    """Each as often as there are corrections, from the one after T down to the end, at equal ratios of sigma / alpha."""
    recorder = Recorder(mixture().score(sde), [])
    drawn = AnnealedLangevin(steps=12, corrections=3).sample(recorder, (2, 2), dtype=torch.float64)
    visited = torch.tensor(recorder.times, dtype=torch.float64).reshape(12, 3)
    assert drawn.nfe == 36
    assert (visited == visited[:, :1]).all()
    assert visited[-1, 0] == pytest.approx(sde.t_min)
    level = torch.cat([torch.tensor([sde.T], dtype=torch.float64), visited[:, 0]])
    ratio = (sde.sigma(level) / sde.alpha(level)).log().diff()
    torch.testing.assert_close(ratio, ratio.mean().expand(12), rtol=1e-5, atol=1e-8)


def test_the_last_denoising_is_one_more_evaluation():
    drawn = AnnealedLangevin(steps=6, corrections=2).sample(mixture().score(SDE_CASES["ve"]), (2, 2), denoise=True)
    assert drawn.nfe == 13
    assert drawn.denoised


def test_a_budget_is_shared_by_levels_and_steps():
    solver = AnnealedLangevin(steps=100, corrections=4)
    assert solver.with_budget(400) == solver
    assert solver.with_budget(100) == AnnealedLangevin(steps=50, corrections=2)
    assert solver.with_budget(3) == AnnealedLangevin(steps=3, corrections=1)
    with pytest.raises(ValueError, match="evaluations, got 0"):
        solver.with_budget(0)
    listed = AnnealedLangevin(grid=ExplicitGrid((1.0, 0.5, 1e-5)), corrections=4)
    assert listed.with_budget(8) == listed
    with pytest.raises(ValueError, match="explicit list"):
        listed.with_budget(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"corrections": 0}, "corrections must be at least 1, got 0"), ({"snr": 1.0}, "snr must lie between 0 and 1.*got 1.0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AnnealedLangevin(**options)


def check(sde):
    """Mean within 4 standard errors and 2 %, covariance within 4 standard errors and 15 % of the variances."""
    truth, count = mixture(), 2000
    noise = BatchNoise(9, (count, 2))
    x_T = sde.perturb(truth.sample(count, seed=8), sde.T, noise.normal())
    x = AnnealedLangevin().solve(truth.score(sde), x_T, sde.T, sde.t_min, noise=noise)
    standard = truth.covariance().diagonal().sqrt()
    assert ((x.mean(0) - truth.mean()).abs() < 4 * standard / count**0.5 + 0.02 * standard).all()
    deviation = x - x.mean(0)
    products = deviation[:, :, None] * deviation[:, None, :]
    allowed = 4 * products.std(0) / count**0.5 + 0.15 * standard[:, None] * standard
    assert ((x.T.cov() - truth.covariance()).abs() < allowed).all()


def test_mean_and_covariance_of_samples_under_vp():
    check(SDE_CASES["vp"])


@pytest.mark.slow
def test_mean_and_covariance_of_samples(sde):
    check(sde)
