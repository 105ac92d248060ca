"""Moments that a solver gives: without sampling error, by quadrature, and of samples."""

from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.interpolate import CubicSpline

from score_sde.score import BoundScore
from tests.oracles.mixtures import mixture


class Impulses:
    """In place of noise: the j-th draw is 1 in row 2 + j and 0 elsewhere."""

    def __init__(self, rows):
        self.rows, self.drawn = rows, 0

    def normal(self):
        self.drawn += 1
        return torch.eye(self.rows, dtype=torch.float64)[:, 1 + self.drawn, None]


class BatchNoise:
    """Noise for a whole batch from one generator: a generator for each of thousands of samples takes most of the time."""

    def __init__(self, seed, shape, dtype=torch.float64):
        self.generator, self.shape, self.dtype = torch.Generator().manual_seed(seed), shape, dtype

    def normal(self):
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


class Given:
    """In place of noise: these numbers, at every draw."""

    def __init__(self, numbers):
        self.numbers = numbers

    def normal(self):
        return self.numbers


def affine_moments(solver, score, mean, variance, t_from, t_to, draws=1):
    """Mean and variance at ``t_to`` without sampling error, where the score is linear in x and x has one coordinate.

    A step is then affine in the state and its ``draws`` normal numbers, so its answers to 0 and to unit impulses say all.
    """
    for t, s in pairwise(solver.times(score.sde, t_from, t_to)):
        x = torch.zeros(2 + draws, 1, dtype=torch.float64)
        x[1] = 1
        noise = Impulses(2 + draws)
        moved = solver.move(BoundScore(score), x, t, s, noise)
        assert noise.drawn == draws
        gain = moved[1] - moved[0]
        spread = (moved[2:] - moved[0]).square().sum()
        mean, variance = gain * mean + moved[0], gain**2 * variance + spread
    return float(mean), float(variance)


def expectation(solver, score, function, t_from, t_to, *, nodes=24, points=601):
    """E function(x) at ``t_to`` from the exact law at ``t_from``, for one coordinate, by quadrature.

    Backwards from the end, u(x) <- E u(step(x, z)), with Gauss-Hermite nodes for z and a cubic spline for u.
    """
    sde = score.sde
    z, weights = hermegauss(nodes)
    weights = weights / weights.sum()
    spread = lambda t: 8 * float((sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())
    u = function
    for t, s in reversed(list(pairwise(solver.times(sde, t_from, t_to)))):
        x = np.linspace(-spread(t), spread(t), points)
        states = torch.from_numpy(np.repeat(x, nodes)[:, None])
        given = Given(torch.from_numpy(np.tile(z, points)[:, None]))
        moved = solver.move(BoundScore(score), states, t, s, given).numpy().reshape(points, nodes)
        u = CubicSpline(x, u(moved) @ weights)
    x = np.linspace(-spread(t_from), spread(t_from), 8001)
    times = torch.full((len(x),), t_from, dtype=torch.float64)
    density = score.log_prob(torch.from_numpy(x[:, None]), times).exp().numpy()
    return np.trapezoid(density * u(x), x)


def check_moments(solver, sde, truth=None):
    """Within four standard errors of the mixture's own, from the exact marginal at T, with the solver's bias allowed 2 %."""
    truth = mixture() if truth is None else truth
    count, dim = 3000, truth.means.shape[1]
    noise = BatchNoise(9, (count, dim))
    x_T = sde.perturb(truth.sample(count, seed=8), sde.T, noise.normal())
    with torch.no_grad():
        x = solver.solve(truth.score(sde), x_T, sde.T, sde.t_min, noise=noise)
    covariance = truth.covariance()
    left = float(sde.sigma(sde.t_min)) ** 2
    standard = covariance.diagonal().sqrt()
    assert ((x.mean(0) - truth.mean()).abs() < 4 * standard / count**0.5 + 0.02 * standard).all()
    error = (x.T.cov() - covariance - left * torch.eye(dim)).abs()
    # the standard error of a covariance, from the sample's own fourth moments
    deviation = x - x.mean(0)
    products = deviation[:, :, None] * deviation[:, None, :]
    assert (error < 4 * products.std(0) / count**0.5 + 0.02 * standard[:, None] * standard).all()
