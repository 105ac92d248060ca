"""Reverse diffusion: the chains of Song et al. by their own formulas, and a transition that agrees with f and g."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from score_sde import VESDE
from score_sde.score import BoundScore
from score_sde.sdes import ddpm_schedule
from score_sde.solvers.reverse_diffusion import ReverseDiffusion
from score_sde.tensors import SampleNoise
from score_sde.transitions import forward_transition
from tests.oracles import PUBLISHED, SDE_CASES, affine_moments, exact_moments, gaussian, mixture


def test_the_transition_solves_the_moment_equations(sde):
    """a' = f a and v' = 2 f v + g^2 from (1, 0) at s, by scipy: nothing of alpha and sigma."""
    s, t = 0.35 * sde.T, 0.6 * sde.T

    def slope(time, state):
        f, g = float(sde.drift_coefficient(time)), float(sde.diffusion(time))
        return [f * state[0], 2 * f * state[1] + g**2]

    exact = solve_ivp(slope, (s, t), [1.0, 0.0], rtol=1e-10, atol=1e-12, max_step=0.005 * sde.T).y[:, -1]
    found = forward_transition(sde, *(torch.tensor(value, dtype=torch.float64) for value in (s, t)))
    np.testing.assert_allclose([float(value) for value in found], exact, rtol=1e-5)


def test_a_short_transition_has_the_variance_g2_dt(sde):
    t = torch.tensor(0.5 * sde.T, dtype=torch.float64)
    dt = 1e-9 * sde.T
    a, variance = forward_transition(sde, t - dt, t)
    assert variance.item() == pytest.approx(sde.diffusion(t).item() ** 2 * dt, rel=1e-5)
    assert a.item() == pytest.approx(1, abs=1e-7)


def compare(sde, times, expected_step):
    """The trajectory of the solver on the grid ``times``, against ``expected_step(k, x, score, z)`` with the same noise."""
    score = mixture().score(sde)
    start = float(sde.sigma(times[0])) * torch.randn(4, 2, dtype=torch.float64)
    noise = SampleNoise(7, (4, 2), dtype=torch.float64)
    again = SampleNoise(7, (4, 2), dtype=torch.float64)
    solver, found, expected = ReverseDiffusion(), start, start
    for k, (t, s) in enumerate(pairwise(torch.as_tensor(times, dtype=torch.float64))):
        found = solver.move(BoundScore(score), found, t, s, noise)
        expected = expected_step(k, expected, score(expected, t.expand(4)), again.normal())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_chain_of_ddpm():
    """x_{k-1} = (2 - sqrt(1 - beta_k)) x_k + beta_k score + sqrt(beta_k) z, from the table."""
    betas = np.linspace(1e-3, 0.2, 30)
    backwards = betas[::-1]

    def step(k, x, score, z):
        return (2 - math.sqrt(1 - backwards[k])) * x + backwards[k] * score + math.sqrt(backwards[k]) * z

    compare(ddpm_schedule(betas=tuple(betas), t_min=1 / 30), np.arange(30, 0, -1) / 30, step)


def test_the_chain_of_smld():
    """x_{k-1} = x_k + (sigma_k^2 - sigma_{k-1}^2) score + sqrt(sigma_k^2 - sigma_{k-1}^2) z, with geometric sigmas."""
    sigmas = np.geomspace(20, 0.05, 25)
    removed = sigmas[:-1] ** 2 - sigmas[1:] ** 2
    times = np.linspace(1, 1e-5, 25)
    sigma_min = 0.05 / 400 ** (1e-5 / (1 - 1e-5))
    compare(
        VESDE(sigma_min=sigma_min, sigma_max=20.0),
        times,
        lambda k, x, score, z: x + removed[k] * score + math.sqrt(removed[k]) * z,
    )


def test_the_last_step_may_lead_to_the_data():
    """sigma_s = 0, where the log-SNR is infinite: b^2 is sigma_t^2."""
    sde = SDE_CASES["vp"]
    t = torch.tensor(0.1, dtype=torch.float64)
    a, variance = forward_transition(sde, torch.zeros_like(t), t)
    assert a == sde.alpha(t)
    assert variance == sde.sigma(t) ** 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_weak_order_1_on_gaussian_data(name):
    sde, errors = SDE_CASES[name], []
    for steps in (128, 256):
        found = affine_moments(ReverseDiffusion(steps=steps), gaussian().score(sde), *exact_moments(sde, 0.8), 0.8, 0.2)
        errors.append(abs(found[1] - float(exact_moments(sde, 0.2)[1])))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2), errors
