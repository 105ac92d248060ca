"""EDM's samplers: what churn does to the noise, and where it does nothing."""

import math
from dataclasses import replace

import pytest
import torch

from score_sde import EDM, GaussianMixture, Heun
from score_sde.score import BoundScore
from score_sde.tensors import SampleNoise
from tests.oracles import SDE_CASES, Recorder, mixture


def test_without_churn_it_is_heun(sde):
    score = mixture().score(sde)
    x = float(sde.sigma(sde.T)) * torch.randn(4, 2, dtype=torch.float64)
    plain = Heun(steps=12).solve(score, x, sde.T, sde.t_min)
    for quiet in (EDM(steps=12, s_churn=0.0), EDM(steps=12, s_min=1e7, s_max=1e8)):
        torch.testing.assert_close(quiet.solve(score, x, sde.T, sde.t_min), plain)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_a_step_raises_the_noise_level_first(name):
    """All data at one point: the step ends at x0 plus old and new noise, both scaled to the level s."""
    sde = SDE_CASES[name]
    point = GaussianMixture(torch.tensor([[0.5]], dtype=torch.float64), [0.0])
    recorder = Recorder(point.score(sde), [])
    t, s = (sde.inverse_log_snr(torch.tensor(-2 * math.log(rho), dtype=torch.float64)) for rho in (0.5, 0.2))
    solver = EDM(steps=10, s_churn=3.0, s_min=0.0, s_max=50.0, s_noise=1.0)
    count = 40000
    x = (float(sde.alpha(t)) * 0.5 + float(sde.sigma(t)) * 1.3) * torch.ones(count, 1, dtype=torch.float64)
    end = solver.step(BoundScore(recorder), x, t, s, SampleNoise(0, x.shape, dtype=torch.float64))
    raised = torch.tensor(recorder.times[0], dtype=torch.float64)
    assert float(sde.sigma(raised) / sde.alpha(raised)) == pytest.approx(1.3 * 0.5, rel=1e-6)  # gamma = 3 / 10
    # the noise 0.5 * 1.3 of x and new noise of variance 0.65^2 - 0.5^2, both scaled to the level 0.2
    y = end / sde.alpha(s) - 0.5
    mean, spread = 0.2 / 0.65 * 0.5 * 1.3, 0.2 / 0.65 * math.sqrt(0.65**2 - 0.5**2)
    assert abs(float(y.mean()) - mean) < 4 * spread / count**0.5
    assert abs(float(y.std()) / spread - 1) < 4 / (2 * count) ** 0.5


def test_churn_is_limited():
    """gamma is at most sqrt(2) - 1, and no level is raised above that of T."""
    sde = SDE_CASES["vp"]
    recorder = Recorder(mixture().score(sde), [])
    solver = EDM(steps=4, s_churn=100.0, s_min=0.0, s_max=1e9)
    x = torch.randn(2, 2, dtype=torch.float64)
    solver.step(BoundScore(recorder), x, *torch.tensor([1.0, 0.9], dtype=torch.float64), SampleNoise(0, x.shape, dtype=x.dtype))
    assert recorder.times[0] == sde.T
    t, s = torch.tensor([0.4, 0.3], dtype=torch.float64)
    solver.step(BoundScore(recorder), x, t, s, SampleNoise(0, x.shape, dtype=x.dtype))
    raised = torch.tensor(recorder.times[2], dtype=torch.float64)
    ratio = sde.sigma(raised) / sde.alpha(raised) / (sde.sigma(t) / sde.alpha(t))
    assert float(ratio) == pytest.approx(math.sqrt(2), rel=1e-6)


def test_bad_churn_is_refused():
    for wrong in ({"s_churn": -1.0}, {"s_noise": -0.1}, {"s_min": 2.0, "s_max": 1.0}):
        with pytest.raises(ValueError, match="must not be negative, and 0 <= s_min <= s_max"):
            replace(EDM(), **wrong)


def test_nothing_is_added_unless_it_is_asked_for():
    """The paper's deterministic sampler, and k-diffusion's default."""
    score = mixture().score(SDE_CASES["vp"])
    assert torch.equal(EDM(steps=18).sample(score, (4, 2)).x, Heun(steps=18).sample(score, (4, 2)).x)
