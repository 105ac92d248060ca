"""EDM's samplers: what churn does to the noise, and where it does nothing."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from score_sde import EDM, GaussianMixture, Heun, decode, encode
from score_sde.score import BoundScore
from score_sde.tensors import SampleNoise
from tests.oracles import SDE_CASES, Around, Given, Recorder, mixture


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
    z = torch.randn(4, 1, dtype=torch.float64)
    x = (float(sde.alpha(t)) * 0.5 + float(sde.sigma(t)) * 1.3) * torch.ones(4, 1, dtype=torch.float64)
    end = solver.move(BoundScore(recorder), x, t, s, Given(z))
    raised = torch.tensor(recorder.times[0], dtype=torch.float64)
    assert float(sde.sigma(raised) / sde.alpha(raised)) == pytest.approx(1.3 * 0.5, rel=1e-6)  # gamma = 3 / 10
    # the noise 0.5 * 1.3 of x and new noise of variance 0.65^2 - 0.5^2, both scaled to the level 0.2
    expected = 0.2 / 0.65 * (0.5 * 1.3 + math.sqrt(0.65**2 - 0.5**2) * z)
    torch.testing.assert_close(end / sde.alpha(s) - 0.5, expected, rtol=1e-5, atol=1e-6)


def test_churn_is_limited():
    """gamma is at most sqrt(2) - 1, and no level is raised above that of T."""
    sde = SDE_CASES["vp"]
    recorder = Recorder(mixture().score(sde), [])
    solver = EDM(steps=4, s_churn=100.0, s_min=0.0, s_max=1e9)
    x = torch.randn(2, 2, dtype=torch.float64)
    solver.move(BoundScore(recorder), x, *torch.tensor([1.0, 0.9], dtype=torch.float64), SampleNoise(0, x.shape, dtype=x.dtype))
    assert recorder.times[0] == sde.T
    t, s = torch.tensor([0.4, 0.3], dtype=torch.float64)
    solver.move(BoundScore(recorder), x, t, s, SampleNoise(0, x.shape, dtype=x.dtype))
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


@pytest.mark.parametrize("s_noise", [0.5, 1.0, 2.0])
def test_s_noise_is_the_factor_of_what_is_added(s_noise, sde):
    """The state at which the score is first asked, beside the one that was given."""
    asked = []

    @dataclass(frozen=True, eq=False)
    class Asked(Around):
        def __call__(self, x, t, cond=None):
            asked.append((x, t[0]))
            return self.inner(x, t, cond)

    t = sde.inverse_log_snr(torch.tensor(-2 * math.log(0.5), dtype=torch.float64))
    x, z = torch.full((4, 1), 0.3, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    solver = EDM(steps=10, s_churn=3.0, s_min=0.0, s_noise=s_noise)
    solver.move(BoundScore(Asked(mixture((1,)).score(sde))), x, t, 0.9 * t, Given(z))
    raised = asked[0][0] / sde.alpha(asked[0][1]) - x / sde.alpha(t)
    added = s_noise * math.sqrt(0.65**2 - 0.5**2) * z  # gamma = 3 / 10
    torch.testing.assert_close(raised, added, rtol=1e-5, atol=1e-6)


def test_churn_alone_makes_it_stochastic():
    assert not EDM().stochastic
    assert EDM().order == 2
    assert EDM(s_churn=1.0).stochastic
    assert EDM(s_churn=1.0).order is None
    score, x = mixture().score(SDE_CASES["vp"]), mixture().sample(4)
    latent = encode(score, x, EDM(steps=200, grid="log_snr"))
    torch.testing.assert_close(decode(score, latent, EDM(steps=200, grid="log_snr")), x, rtol=0, atol=1e-2)
