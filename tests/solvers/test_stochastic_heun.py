"""Stochastic Heun: weak order 2 measured without Monte Carlo, and what it meets exactly."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from score_sde import DDIM, GaussianMixture
from score_sde.score import BoundScore
from score_sde.solvers.stochastic_heun import StochasticHeun
from score_sde.tensors import SampleNoise
from tests.oracles import PUBLISHED, SDE_CASES, affine_moments, exact_moments, expectation, gaussian, mixture


@pytest.mark.parametrize("grid", ["uniform", "log_snr"])
def test_gaussian_data_has_the_exact_mean_and_a_variance_of_order_2(each_sde, grid):
    start, end = 0.8 * each_sde.T, 0.2 * each_sde.T
    errors = []
    for steps in (32, 64):
        solver = StochasticHeun(steps=steps, grid=grid)
        mean, variance = affine_moments(solver, gaussian().score(each_sde), *exact_moments(each_sde, start), start, end)
        expected_mean, expected_variance = map(float, exact_moments(each_sde, end))
        assert mean == pytest.approx(expected_mean, rel=1e-9)
        errors.append(abs(variance - expected_variance))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2), errors
    assert errors[1] < 8e-3 * expected_variance


@pytest.mark.parametrize("name", PUBLISHED)
def test_weak_order_on_a_mixture(name):
    """Two separate components, where the score is not linear: E x^2 and E cos(2 x) against their exact values."""
    sde = SDE_CASES[name]
    means, variances, shares = np.array([-0.9, 0.6]), np.array([0.05, 0.1]), np.array([0.4, 0.6])
    score = GaussianMixture(torch.from_numpy(means[:, None]), torch.from_numpy(variances), shares).score(sde)
    start, end = 0.6, 0.4
    alpha, noise = float(sde.alpha(end)), float(sde.sigma(end)) ** 2
    total = alpha**2 * variances + noise
    exact = {
        "square": shares @ (alpha**2 * means**2 + total),
        "cosine": shares @ (np.cos(2 * alpha * means) * np.exp(-2 * total)),
    }
    functions = {"square": np.square, "cosine": lambda x: np.cos(2 * x)}
    for which, function in functions.items():
        errors = [abs(expectation(StochasticHeun(steps=n), score, function, start, end) - exact[which]) for n in (8, 16)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2), (which, errors)


def test_a_single_point_is_met_in_one_step(sde):
    """The law of x_s given x_t and the data, by conditioning in the joint Gaussian."""
    score = gaussian(0.5, 0.0).score(sde)
    t, s = 0.8 * sde.T, 0.1 * sde.T
    gain = sde.alpha(t) / sde.alpha(s) * sde.sigma(s) ** 2 / sde.sigma(t) ** 2
    expected_mean = sde.alpha(s) * 0.5 + gain * (1.1 - sde.alpha(t) * 0.5)
    expected_variance = sde.sigma(s) ** 2 - gain * sde.alpha(t) / sde.alpha(s) * sde.sigma(s) ** 2
    mean, variance = affine_moments(StochasticHeun(steps=1), score, 1.1, 0.0, t, s)
    assert mean == pytest.approx(float(expected_mean))
    assert variance == pytest.approx(float(expected_variance))


@dataclass(frozen=True)
class Drifting:
    """A score whose E[x0 | x] is the log-SNR itself, whatever x."""

    sde: object

    def __call__(self, x, t, cond=None):
        data = self.sde.log_snr(t)[:, None]
        return (self.sde.alpha(t)[:, None] * data - x) / self.sde.sigma(t)[:, None] ** 2


def test_a_prediction_linear_in_log_snr_is_integrated_exactly(sde):
    """Over one large step, against the integral of lambda exp(lambda) in y = alpha x / sigma^2, (lambda - 1) exp(lambda)."""
    t, s = 0.8 * sde.T, 0.3 * sde.T
    low, high = float(sde.log_snr(t)), float(sde.log_snr(s))
    gained = (high - 1) * math.exp(high) - (low - 1) * math.exp(low)
    start = 1.1 * float(sde.alpha(t) / sde.sigma(t) ** 2)
    mean, _ = affine_moments(StochasticHeun(steps=1), Drifting(sde), 1.1, 0.0, t, s)
    assert mean * float(sde.alpha(s) / sde.sigma(s) ** 2) == pytest.approx(start + gained, rel=1e-6)


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr", "edm"])
def test_few_steps_are_stable(sde, grid):
    """Six steps over the whole range, where the steps of a uniform grid are many times as large as the last noise."""
    solver = StochasticHeun(steps=6, grid=grid)
    mean, variance = affine_moments(solver, gaussian().score(sde), *exact_moments(sde, sde.T), sde.T, sde.t_min)
    assert mean == pytest.approx(float(exact_moments(sde, sde.t_min)[0]), rel=1e-6)
    assert 0.03 < variance < 0.6


def test_it_is_worth_its_second_evaluation(each_sde):
    """At 160 evaluations the variance of Gaussian samples is off by 0.4 of ancestral sampling's error, or less."""

    def error(solver):
        _, variance = affine_moments(
            solver, gaussian().score(each_sde), *exact_moments(each_sde, each_sde.T), each_sde.T, each_sde.t_min
        )
        return abs(variance - float(exact_moments(each_sde, each_sde.t_min)[1]))

    assert error(StochasticHeun().with_budget(160)) < 0.4 * error(DDIM(steps=160, grid="log_snr", eta=1.0))


def test_both_stages_share_their_noise():
    score = mixture().score(SDE_CASES["vp"])
    noise = SampleNoise(0, (4, 2), dtype=torch.float64)
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    StochasticHeun().move(BoundScore(score), torch.zeros(4, 2, dtype=torch.float64), t, s, noise)
    again = SampleNoise(0, (4, 2), dtype=torch.float64)
    again.normal()
    assert torch.equal(noise.normal(), again.normal())


def test_budget_counts_both_evaluations():
    assert StochasticHeun().with_budget(21).steps == 10
    with pytest.raises(ValueError, match="takes 2 evaluations, got 1"):
        StochasticHeun().with_budget(1)
