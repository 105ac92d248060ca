"""Flow matching: the error of the velocity, its minimizer, and a model trained by it under every solver."""

import math
from dataclasses import dataclass

import pytest
import torch

from score_sde import DataSpec, ProbabilityFlow, ScoreModel, StraightSDE, fit, log_likelihood
from score_sde.data import Batch, read, two_moons
from score_sde.draws import Draws
from score_sde.networks import MLP
from score_sde.objectives import DenoisingScoreMatching, FlowMatching
from score_sde.solvers import SOLVERS
from score_sde.tensors import expand, mean_event
from score_sde.time_sampling import TimeRule
from score_sde.training import TrainingOptions
from tests.oracles import SDE_CASES, Around, gaussian
from tests.solvers.variants import TO_DATA


@dataclass(frozen=True)
class EvenTimes(TimeRule):
    """The same times whatever is drawn, float64."""

    def warp(self, sde, u, state):
        t = torch.linspace(sde.t_min, sde.T, len(u), dtype=torch.float64)
        return t, torch.ones_like(t)


def test_it_is_the_squared_error_of_the_velocity(sde):
    """alpha' x0 + sigma' epsilon, the slopes by differences, against the drift of the ODE: the loss and its gradient."""
    model = ScoreModel(MLP((3,), width=8, depth=1), sde, DataSpec((3,)), parameterization="velocity").double()
    x0 = torch.randn(6, 3, dtype=torch.float64)
    terms = FlowMatching(EvenTimes())(model, Batch(x0), Draws(0, 1, 6), {})
    t, epsilon = terms.times, Draws(0, 1, 6).normal("noise", x0.shape).double()
    step = 1e-4 * torch.minimum(t, 1 - t if sde.T < 1 else t)
    slope = lambda function: (function(t + step) - function(t - step)) / (2 * step)
    velocity = expand(slope(sde.alpha), x0) * x0 + expand(slope(sde.sigma), x0) * epsilon
    x = sde.perturb(x0, t, epsilon)
    expected = mean_event((sde.probability_flow(x, t, model(x, t)) - velocity) ** 2)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    for found, wanted in zip(*(torch.autograd.grad(loss.mean(), parameters) for loss in (terms.loss, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_its_gradient_is_that_of_denoising_with_its_weight():
    """For the straight path the weight is 1 / alpha^2."""
    model = ScoreModel(MLP((3,), width=8, depth=1), StraightSDE(), DataSpec((3,)), parameterization="velocity").double()
    batch = Batch(torch.randn(6, 3, dtype=torch.float64))
    weight = lambda model, t: (1 - t) ** -2
    losses = [
        objective(model, batch, Draws(0, 1, 6), {}).loss
        for objective in (FlowMatching(EvenTimes()), DenoisingScoreMatching(weight, EvenTimes()))
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    named = DenoisingScoreMatching("velocity", EvenTimes())(model, batch, Draws(0, 1, 6), {})
    assert torch.equal(named.loss, losses[0])


@dataclass(frozen=True, eq=False)
class ScaledVelocity(Around):
    """The score whose velocity is that of another, times a factor."""

    factor: float

    def __call__(self, x, t, cond=None):
        velocity = self.factor * self.sde.probability_flow(x, t, self.inner(x, t))
        return (self.sde.drift(x, t) - velocity) * expand(2 / self.sde.diffusion(t) ** 2, x)


@pytest.mark.parametrize("name", ["straight", "vp", "ve"])
def test_the_minimizer_is_the_velocity(name):
    """On Gaussian data the slope along a line of velocities is 0 at the exact one, within its error, and nowhere else."""
    exact, batch = gaussian().score(SDE_CASES[name]), Batch(gaussian().sample(5000))
    slopes = {}
    for factor in (0.8, 1.0, 1.2):
        at = lambda factor: FlowMatching()(ScaledVelocity(exact, factor), batch, Draws(0, 1, 5000), {}).loss
        slope = (at(factor + 0.1) - at(factor - 0.1)) / 0.2  # exact: the loss is a parabola
        slopes[factor] = slope.mean().item() / (slope.std().item() / math.sqrt(5000))
    assert abs(slopes[1.0]) < 4
    assert slopes[0.8] < -6
    assert slopes[1.2] > 6


FLOW = {"parameterization": "velocity", "time_input": "time", "objective": FlowMatching(), "sde": "straight"}


def test_a_model_trained_by_it_is_sampled_by_every_solver_and_scored(tmp_path):
    training = TrainingOptions(steps=150, batch_size=64, learning_rate=3e-3, ema_decay=0.9, sample_every=0)
    run = fit(two_moons(400), tmp_path / "run", network_options={"width": 16}, training=training, progress=False, **FLOW)
    for name in TO_DATA:
        x = SOLVERS[name]().with_budget(24).sample(run.model, (64, 2), seed=0).x
        assert x.mean(0).abs().max() < 0.5, name  # the data has mean 0 and standard deviation 1
        assert 0.6 < x.std() < 1.5, name
    values = run.model.data.scale(read(two_moons(400).test, slice(None)).values)
    record = log_likelihood(run.model, values, solver=ProbabilityFlow(method="midpoint", steps=8), divergence="exact")
    assert record.log_prob.mean() > -math.log(2 * math.pi) - 1  # what the Gaussian of these moments has


@pytest.mark.slow
def test_its_likelihood_is_near_that_of_denoising_under_vp(tmp_path):
    """And below that of two curves of length pi, with noise of 0.06 across them, in coordinates of standard deviation 1."""
    training = TrainingOptions(
        steps=1000, batch_size=256, learning_rate=2e-3, schedule="cosine", ema_decay=0.99, sample_every=0
    )
    values, found = read(two_moons().test, slice(500)).values, []
    for name, options in {"straight": FLOW, "vp": {}}.items():
        run = fit(two_moons(), tmp_path / name, network_options={"width": 64}, training=training, progress=False, **options)
        spec, solver = run.model.data, ProbabilityFlow(method="rk45", rtol=1e-4, atol=1e-4)
        found.append(log_likelihood(run.model, spec.scale(values), solver=solver, divergence="exact").log_prob)
    best = -math.log(2 * math.pi) - math.log(2 * math.pi * math.e * 0.06**2) / 2 - spec.log_det
    for log_prob in found:
        error = log_prob.std().item() / math.sqrt(500)
        assert best - 0.4 < log_prob.mean() < best + 4 * error
    assert abs((found[0] - found[1]).mean()) < 0.3
