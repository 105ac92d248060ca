"""Langevin dynamics at one level of noise: its rule, its bias, and what it takes."""

import math
from itertools import pairwise

import pytest
import torch

from score_sde import DDIM, VPSDE, SolverError, tune
from score_sde.likelihood import class_posterior, log_likelihood, sample_with_log_prob
from score_sde.score import BoundScore, draw_latents
from score_sde.sdes import SDES, FixedNoise
from score_sde.solvers import SOLVERS, LangevinDynamics, PredictorCorrector, decode, encode
from score_sde.solvers.fixed_steps import History
from score_sde.tensors import SampleNoise, batch_time
from tests.oracles import SDE_CASES, BrokenScore, Given, Recorder, autograd_score, gaussian, mixture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 2, 2), (2, 1, 2, 2)], ids=str)
def test_a_step_is_the_rule_of_the_paper(shape, dtype):
    score, x, z = mixture(shape, dtype).score(FixedNoise(0.2)), *torch.randn(2, 3, *shape, dtype=dtype)
    t, s = torch.tensor([1.0, 0.5], dtype=torch.float64)
    moved, _ = LangevinDynamics(step_size=0.3).step(BoundScore(score), x, t, s, Given(z), History(1))
    torch.testing.assert_close(moved, x + 0.15 * score(x, batch_time(1.0, x)) + math.sqrt(0.3) * z)
    drawn = LangevinDynamics(steps=4).sample(score, (3, *shape))
    assert drawn.x.dtype == dtype
    assert drawn.nfe == 4


def test_the_stationary_variance_is_the_biased_one():
    """v / (1 - h / (4 v)) of N(m, v), from the start on: within 4 standard errors."""
    variance, step, count = 0.3, 0.4, 4000
    score = gaussian(0.7, variance - 0.2**2).score(FixedNoise(0.2))
    left = variance / (1 - step / (4 * variance))
    x_T = 0.7 + math.sqrt(left) * torch.randn(count, 1, dtype=torch.float64)
    x = LangevinDynamics(steps=20, step_size=step).sample(score, x_T=x_T, seed=1).x
    assert x.mean().item() == pytest.approx(0.7, abs=4 * math.sqrt(left / count))
    assert x.var().item() == pytest.approx(left, rel=4 * math.sqrt(2 / count))


def test_it_forgets_where_it_starts():
    """From the wide normal of its own start, to the moments of a mixture without noise."""
    truth, count = mixture(components=1), 500
    drawn = LangevinDynamics(steps=400, step_size=0.03).sample(truth.score(FixedNoise()), (count, 2), seed=2, trajectory=True)
    assert drawn.trajectory[0].std().item() == pytest.approx(1.0, rel=0.1)
    standard = truth.covariance().diagonal().sqrt()
    assert ((drawn.x.mean(0) - truth.mean()).abs() < 4 * standard / count**0.5).all()
    assert (drawn.x.var(0) / truth.covariance().diagonal()).log().abs().max() < 4 * math.sqrt(2 / count) + 0.1


def test_samples_seeds_and_progress(capsys):
    score, solver = mixture().score(FixedNoise(0.3)), LangevinDynamics(steps=6)
    recorder = Recorder(score, [])
    together = solver.sample(recorder, (5, 2), seed=3, progress=True).x
    assert "100%" in capsys.readouterr().err
    assert len(recorder.times) == 6
    torch.testing.assert_close(together[3:], solver.sample(score, (2, 2), seed=3, first=3).x)
    assert not torch.allclose(together, solver.sample(score, (5, 2), seed=4).x)
    x = x_T = torch.randn(2, 2, dtype=torch.float64)
    noise, history = SampleNoise(0, (2, 2), purpose="steps", dtype=torch.float64), solver.begin(BoundScore(score), x, 6)
    for t, s in pairwise(solver.times(score.sde, 1.0, 0.5)):
        x, history = solver.step(BoundScore(score), x, t, s, noise, history)
    assert history.left == 0
    assert torch.equal(x, solver.solve(score, x_T, 1.0, 0.5))
    assert solver.with_budget(9) == LangevinDynamics(steps=9)
    assert draw_latents(score, (4000, 1), dtype=torch.float64).std().item() == pytest.approx(math.hypot(1, 0.3), rel=0.05)


def test_a_step_that_is_too_large_is_a_named_error():
    score = gaussian(0.0, 0.001).score(FixedNoise())
    with pytest.raises(SolverError, match="LangevinDynamics: the state is not finite"):
        LangevinDynamics(steps=400, step_size=1.0).sample(score, (2, 1), dtype=torch.float64)
    with pytest.raises(SolverError, match="not finite"):
        LangevinDynamics(steps=4).sample(BrokenScore(score, lambda t: t < 0.6), (2, 1), dtype=torch.float64)


def test_denoising_and_clipping():
    score, x_T = gaussian(0.7, 0.3).score(FixedNoise(0.5)), torch.randn(4, 1, dtype=torch.float64)
    plain = LangevinDynamics(steps=3).sample(score, x_T=x_T)
    mean = LangevinDynamics(steps=3).sample(score, x_T=x_T, denoise=True)
    torch.testing.assert_close(mean.x, plain.x + 0.25 * autograd_score(score, plain.x, batch_time(1.0, plain.x)))
    clipped = LangevinDynamics(steps=3).sample(score, x_T=x_T, denoise=True, clip=(5.0, 6.0))
    assert clipped.x.min() >= 5 - 1e-9
    with pytest.raises(ValueError, match="here sigma is 0: leave it away"):
        LangevinDynamics(steps=3).sample(gaussian().score(FixedNoise()), x_T=x_T, clip=(0.0, 1.0))


def test_other_sdes_are_refused(sde):
    for use in (
        lambda score, x: LangevinDynamics().sample(score, x_T=x),
        lambda score, x: LangevinDynamics().solve(score, x, 1.0, 0.5),
    ):
        with pytest.raises(ValueError, match="langevin is for a score of one density"):
            use(mixture().score(sde), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "langevin"])
def test_other_solvers_refuse_one_level(name):
    score, x = mixture().score(FixedNoise(0.3)), torch.zeros(2, 2, dtype=torch.float64)
    for use in (lambda: SOLVERS[name]().sample(score, (2, 2)), lambda: SOLVERS[name]().solve(score, x, 1.0, 0.5)):
        with pytest.raises(ValueError, match="of the solvers langevin alone takes it"):
            use()


def test_what_needs_a_way_from_noise_to_data_refuses_one_level():
    score, x = mixture().score(FixedNoise(0.3)), torch.zeros(2, 2, dtype=torch.float64)
    for use in (
        lambda: log_likelihood(score, x),
        lambda: sample_with_log_prob(score, (2, 2)),
        lambda: class_posterior(score, x, classes=2),
        lambda: encode(score, x, DDIM(steps=3)),
        lambda: decode(score, x, DDIM(steps=3)),
        lambda: tune(score, (2,), [4]),
        lambda: PredictorCorrector().sample(score, (2, 2)),
        lambda: FixedNoise(0.3).inverse_log_snr(0.0),
    ):
        with pytest.raises(ValueError, match="of the solvers langevin alone takes it"):
            use()


def test_the_sde_is_the_same_at_all_times():
    assert SDES["fixed"](noise=0.2) == FixedNoise(0.2)
    assert set(SDES) - {"fixed"} <= set(SDE_CASES)  # it has tests of its own, here
    t = torch.rand(5, dtype=torch.float64)
    sde, x = FixedNoise(0.2), torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(t), torch.full_like(t, 0.2))
    torch.testing.assert_close(sde.perturb(x, t, x), 1.2 * x)
    assert (sde.diffusion(t) == 0).all()
    assert (sde.drift(x, t) == 0).all()
    assert sde.prior_log_prob(torch.zeros(1, 1)).item() == pytest.approx(-math.log(2 * math.pi * 1.04) / 2)
    assert VPSDE().prior_std == VPSDE().sigma(1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LangevinDynamics(steps=0), "steps must be at least 1"),
        (lambda: LangevinDynamics(step_size=0.0), "step_size must be positive, got 0"),
        (lambda: LangevinDynamics(step_size=math.inf), "step_size must be a finite number"),
        (lambda: FixedNoise(-0.1), "noise must not be negative"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
