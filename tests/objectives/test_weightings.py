"""Weightings, each against its published definition, in the variables of its authors."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from score_sde import VESDE, VPSDE, DataSpec, ScoreModel
from score_sde.objectives import WEIGHTINGS, denoising_score_matching
from score_sde.objectives.weightings import EDM, MinSNR, Sigma2, Sigmoid
from score_sde.tensors import expand, mean_event
from score_sde.time_sampling import LogNormalTimes, LogSNRTimes, UniformTimes
from tests.oracles import Around, mixture


@dataclass(frozen=True, eq=False)
class Standardized(Around):
    """A score for data of a known size."""

    sigma_data: float = 0.5


def slope(function, t):
    with torch.enable_grad():
        t = t.clone().requires_grad_()
        (found,) = torch.autograd.grad(function(t).sum() + 0 * t.sum(), t)  # alpha may not depend on t
    return found


def published(name, sde, s, x0, x, t):
    """The weighted error ``(B, *D)`` of a score ``s`` at ``x``, in the variables of the source."""
    alpha, sigma, log_snr = (expand(value, x) for value in (sde.alpha(t), sde.sigma(t), sde.log_snr(t)))
    falls, guess = expand(-slope(sde.log_snr, t), x), (x + sigma**2 * s) / alpha
    score = -(x - alpha * x0) / sigma**2  # of x given x0
    if name == "sigma2":  # Song et al. 2021, below Eq. 7
        return sigma**2 * (s - score) ** 2
    if name == "likelihood":  # Song et al. 2021b, Eq. 7, with g^2 of the moment equations
        growth = slope(lambda t: sde.sigma(t) ** 2, t) - 2 * slope(sde.log_alpha, t) * sde.sigma(t) ** 2
        return expand(growth, x) * (s - score) ** 2
    if name == "edm":  # Karras et al. 2022, Section 5, for data of standard deviation 0.5
        level = sigma / alpha
        return (level**2 + 0.5**2) / (level * 0.5) ** 2 * (guess - x0) ** 2
    if name == "velocity":  # Lipman et al. 2023, Eq. 14, with x0 and epsilon as x and the score have them
        change = lambda x0, epsilon: expand(slope(sde.alpha, t), x) * x0 + expand(slope(sde.sigma, t), x) * epsilon
        return (change(guess, -sigma * s) - change(x0, -sigma * score)) ** 2
    if name == "min_snr":  # Hang et al. 2023, Section 3.4, predicting the data
        return torch.minimum(alpha**2 / sigma**2, torch.tensor(5.0)) * (guess - x0) ** 2
    assert name == "sigmoid"  # Hoogeboom et al. 2024, predicting the data; their bias is ours
    return falls * math.exp(2.0) * (log_snr - 2.0).sigmoid() * (guess - x0) ** 2


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weighting_is_the_published_one(name, sde):
    score, (x0, epsilon) = Standardized(mixture((3,)).score(sde)), torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.tensor([sde.t_min, 0.02, 0.3, 0.7, sde.T], dtype=torch.float64)
    x = sde.perturb(x0, t, epsilon)
    loss = denoising_score_matching(score, x0, t, epsilon, weighting=WEIGHTINGS[name]())
    assert loss.shape == t.shape
    torch.testing.assert_close(loss, mean_event(published(name, sde, score(x, t), x0, x, t)), rtol=1e-5, atol=1e-9)


def test_sigmoid_weights_the_bound_per_unit_of_log_snr(sde):
    """With times uniform in log-SNR what is left of it is the sigmoid, and the length of the interval."""
    score = mixture((3,)).score(sde)
    t, weight = LogSNRTimes().warp(sde, torch.linspace(0, 0.999, 101, dtype=torch.float64), {})
    total = (sde.T - sde.t_min) * weight * Sigmoid(bias=-1.0)(score, t)
    length = sde.log_snr(sde.t_min) - sde.log_snr(sde.T)
    torch.testing.assert_close(total, length / (1 + torch.exp(sde.log_snr(t) + 1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("build", "message"), [(lambda: MinSNR(0.0), "gamma"), (lambda: Sigmoid(math.inf), "bias")])
def test_weightings_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        build()


# the losses of Karras et al. (2022): a network F, and the denoiser D(y; level) = c_skip y + c_out F(c_in y, c_noise)


class Network(nn.Module):
    def __init__(self, from_level=lambda noise: noise):
        super().__init__()
        self.scale, self.from_level = nn.Parameter(torch.tensor(0.7, dtype=torch.float64)), from_level

    def forward(self, y, noise, cond=None):
        return torch.sin(self.scale * y + expand(self.from_level(noise), y))


def denoised(f, y, level, kind, u):
    """D of Table 1; ``u`` are the times of the VP process."""
    if kind == "edm":
        spread = (level**2 + 0.25).sqrt()
        return 0.25 / spread**2 * y + level * 0.5 / spread * f(y / spread, level.log().flatten() / 4)
    if kind == "vp":
        return y - level * f(y / (level**2 + 1).sqrt(), 999 * u)
    return y + level * f(y, (level / 2).log().flatten())


@pytest.mark.parametrize("kind", ["edm", "vp", "ve"])
@pytest.mark.parametrize("event", [(3,), (3, 4, 4)], ids=str)
def test_losses_of_edm(kind, event):
    """EDMLoss, VPLoss and VELoss with their numbers: noise levels from their draws, weights and denoisers of their own."""
    y, noise = torch.randn(2, 6, *event, dtype=torch.float64)
    draw = torch.linspace(0.01, 0.99, 6, dtype=torch.float64)
    u = 1 - draw * (1 - 1e-5)
    if kind == "edm":  # log level ~ N(-1.2, 1.2^2), of which draw is the distribution function
        level = torch.exp(-1.2 + 1.2 * torch.special.ndtri(draw))
        weight = lambda level: (level**2 + 0.25) / (level * 0.5) ** 2
        sde = VESDE(sigma_min=1e-4, sigma_max=1e4)  # beyond which the normal distribution has nothing
        weighting, rule, place = EDM(), LogNormalTimes(weighted=False), draw
        options, f = {"parameterization": "edm", "time_input": "edm"}, Network()
    elif kind == "vp":
        level = (torch.exp(19.9 / 2 * u**2 + 0.1 * u) - 1).sqrt()
        weight = lambda level: 1 / level**2
        sde, weighting, rule, place = VPSDE(beta_min=0.1, beta_max=20.0), Sigma2(), UniformTimes(), 1 - draw
        options, f = {"parameterization": "epsilon", "labels": 1000}, Network()
    else:
        level = 0.02 * 5000**draw
        weight = lambda level: 1 / level**2
        sde, weighting, rule = VESDE(sigma_min=0.02, sigma_max=100.0), Sigma2(), UniformTimes()
        place = (draw - sde.t_min) / (1 - sde.t_min)
        options = {"parameterization": "ncsn", "time_input": "sigma", "scale_input": False}
        f = Network(lambda level: (level / 2).log())
    levels = expand(level, y)
    expected = weight(levels) * (denoised(Network() if kind == "ve" else f, y + levels * noise, levels, kind, u) - y) ** 2
    model = ScoreModel(f, sde, DataSpec(event), sigma_data=0.5, **options)
    t, weights = rule.warp(sde, place, {})
    assert (weights == 1).all()
    torch.testing.assert_close(sde.noise_level(t), level, rtol=1e-8, atol=0)
    loss = denoising_score_matching(model, y, t, noise, weighting=weighting)
    torch.testing.assert_close(loss, mean_event(expected), rtol=1e-8, atol=0)
