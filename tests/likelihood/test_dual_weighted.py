"""log p along a weighted path against the closed form of mixtures."""

import math

import pytest
import torch

from score_sde import VESDE, VPSDE, Hutchinson, ProbabilityFlow, SolverError, SubVPSDE, log_likelihood
from score_sde.likelihood import DualWeighted
from tests.oracles import BrokenScore, DoubleWellSDE, Recorder, mixture

PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=50.0)}
QUICK = ["vp", pytest.param("subvp", marks=pytest.mark.slow), "ve"]


def found(score, x, solver, **options):
    """log p with the marginal at T as the prior, so that the solver's error alone is left."""
    return log_likelihood(score, x, solver=solver, prior=lambda z: score.log_prob(z, score.sde.T), **options)


@pytest.mark.parametrize("event", [(2,), (3, 2), (1, 2, 2), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.covering(1)
def test_log_p_of_a_mixture(sde, event, dtype):
    """Many steps: within 1e-4 nats/dim for every sample, as any other solver."""
    truth, x = mixture(event).score(sde), mixture(event).sample(8, seed=1)
    result = found(mixture(event, dtype).score(sde), x.to(dtype), DualWeighted(steps=160, tolerance=1e-4))
    error = (result.log_prob.double() - truth.log_prob(x, sde.t_min)).abs().max() / x[0].numel()
    assert result.log_prob.dtype == dtype
    assert result.latent.shape == x.shape
    assert error < 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_few_steps_are_enough_for_bits_per_dim(name):
    """The defaults: 0.003 nats/dim in the mean, 0.01 in the root mean square; sub-VP spans a third more log-SNR."""
    sde = PUBLISHED[name]
    score, x = mixture((16,)).score(sde), mixture((16,)).sample(256, seed=1)
    result = found(score, x, DualWeighted())
    error = (result.log_prob - score.log_prob(x, sde.t_min)) / 16
    assert abs(error.mean()) < 0.003
    assert error.square().mean().sqrt() < 0.01
    assert result.nfe < (70 if name == "subvp" else 40)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.slow
def test_it_converges_faster_than_third_order(name):
    """Halving the steps where they are small enough: the median error falls by more than 2^3, until it is 1e-9 or so."""
    sde = PUBLISHED[name]
    score, x = mixture((4,)).score(sde), mixture((4,)).sample(64, seed=1)
    truth = score.log_prob(x, sde.t_min)
    medians = [
        (found(score, x, DualWeighted(steps=steps, doublings=0)).log_prob - truth).abs().median().item()
        for steps in (48, 96, 192)
    ]
    assert medians[0] / medians[1] > 2**3.2
    assert medians[1] / medians[2] > 2**3.2


@pytest.mark.parametrize("name", QUICK)
def test_the_residual_takes_back_what_the_path_misses(name, monkeypatch):
    """With the weights of the score set to nothing, the same path is at least five times further from the truth."""
    sde = PUBLISHED[name]
    score, x = mixture((16,)).score(sde), mixture((16,)).sample(128, seed=2)
    truth = score.log_prob(x, sde.t_min)
    with_it = (found(score, x, DualWeighted(steps=32)).log_prob - truth).abs().median()
    monkeypatch.setattr("score_sde.likelihood.dual_weighted.sum_event", lambda x: torch.zeros(len(x), dtype=x.dtype))
    without = (found(score, x, DualWeighted(steps=32)).log_prob - truth).abs().median()
    assert without > 5 * with_it


def test_standard_normal_data_is_exact_in_one_step():
    """The force vanishes under VP, and the Gaussian part of log p is in closed form."""
    score = mixture((3,), components=1)
    score.means.zero_()
    score.variances.fill_(1.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    result = found(score.score(VPSDE()), x, DualWeighted(steps=1))
    torch.testing.assert_close(result.log_prob, score.log_prob(x), rtol=0, atol=1e-5)
    assert result.nfe == 2


def test_samples_whose_residual_is_large_are_solved_again():
    """Refinement repeats some samples, not all, and makes the worst of them better by far."""
    score, x = mixture((2,)).score(VPSDE()), mixture((2,)).sample(256, seed=1)
    truth, seen = score.log_prob(x, 1e-5), []
    once = found(score, x, DualWeighted(steps=24, doublings=0))
    again = found(Recorder(score, seen).inner, x, DualWeighted(steps=24))
    assert once.nfe == 25
    assert 25 < again.nfe < 60
    worst = lambda result: (result.log_prob - truth).abs().max()
    assert worst(again) < 0.1 * worst(once)
    changed = (again.log_prob != once.log_prob).double().mean()
    assert 0.02 < changed < 0.5


def test_a_sample_alone_and_in_a_batch_of_64(each_sde):
    score, x = mixture((4, 4)).score(each_sde), mixture((4, 4)).sample(64, seed=3)
    for options in ({}, {"divergence": Hutchinson(2)}):
        together = found(score, x, DualWeighted(), **options).log_prob
        for i in (17, 63):
            alone = found(score, x[i : i + 1], DualWeighted(), first=i, **options).log_prob
            assert (together[i] - alone[0]).abs() / 16 < 1e-10


def test_a_condition_stays_with_its_sample_when_it_is_solved_again():
    score, x = mixture().score(VPSDE()), mixture().sample(48, seed=1)
    cond = torch.arange(48) % 3
    solver = DualWeighted(steps=10, tolerance=1e-3)
    together = log_likelihood(score, x, solver=solver, cond=cond).log_prob
    for k in range(3):
        apart = log_likelihood(score, x[k::3], solver=solver, cond=cond[k::3]).log_prob
        torch.testing.assert_close(together[k::3], apart)


def test_evaluations_stay_in_range_and_are_counted(sde):
    seen = []
    result = log_likelihood(
        Recorder(mixture().score(sde), seen), mixture().sample(3), solver=DualWeighted(steps=9, doublings=0)
    )
    assert result.nfe == len(seen) == 10
    assert result.vjps == 20
    assert min(seen) == pytest.approx(sde.t_min)
    assert max(seen) == pytest.approx(sde.T)


def test_nan_is_a_named_error():
    score = BrokenScore(mixture().score(VPSDE()), lambda t: t > 0.2)
    with pytest.raises(SolverError, match=r"not finite at t = 0\.[2-4].*evaluation \d+"):
        log_likelihood(score, torch.zeros(2, 2, dtype=torch.float64), solver=DualWeighted())


@pytest.mark.parametrize("solver", [DualWeighted(), ProbabilityFlow(method="rk45")], ids=["dual_weighted", "rk45"])
def test_a_divergence_that_is_nan_is_a_named_error(solver):
    """The score itself is finite, its derivative at 0 is not."""

    class Score:
        sde = VPSDE()

        def __call__(self, x, t, cond=None):
            return -x.abs().sqrt()

    with pytest.raises(SolverError, match="not finite at t = 1e-05"):
        log_likelihood(Score(), torch.zeros(2, 3), solver=solver)


def test_a_drift_that_is_not_linear_is_refused():
    class Score:
        sde = DoubleWellSDE()

        def __call__(self, x, t, cond=None):
            return -x

    with pytest.raises(TypeError, match="not linear"):
        log_likelihood(Score(), torch.zeros(1, 1, dtype=torch.float64), solver=DualWeighted())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"tolerance": math.inf}, "tolerance must be positive"),
        ({"doublings": 1.5}, "doublings"),
        ({"doublings": -1}, "-1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DualWeighted(**options)


DIFFERENTIATED = {
    "dual_weighted": DualWeighted(steps=12),
    "rk4": ProbabilityFlow(method="rk4", steps=6),
    "rk45": ProbabilityFlow(method="rk45", rtol=1e-8, atol=1e-8),  # finite differences see its steps change
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.quick("exact")
def test_log_p_can_be_differentiated(name, divergence):
    """The gradient in x is that of finite differences, and close to the score at t_min, which it is in the limit."""
    solver, score = DIFFERENTIATED[name], mixture((3,)).score(VPSDE(t_min=1e-3))
    x = mixture((3,)).sample(4, seed=2).requires_grad_()
    value = lambda point, **how: log_likelihood(
        score, point, solver=solver, divergence=divergence, seed=1, **how
    ).log_prob.sum()
    (gradient,) = torch.autograd.grad(value(x, differentiable=True), x)
    direction = torch.randn(x.shape, dtype=x.dtype)
    ends = [value(x.detach() + step * direction) for step in (1e-5, -1e-5)]
    slope = (ends[0] - ends[1]) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)
    if divergence == "exact" and name == "rk45":
        torch.testing.assert_close(gradient, score(x.detach(), torch.full((4,), 1e-3).double()), rtol=0.02, atol=0.02)
    assert not value(x).requires_grad


def test_parameters_of_a_network_get_the_gradient_of_log_p():
    """A linear score -w x under VP with w = 1: d log p / dw by autograd against finite differences."""

    class Linear(torch.nn.Module):
        sde = VPSDE()

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(1.1, dtype=torch.float64))

        def forward(self, x, t, cond=None):
            return -self.w * x

    score, x = Linear(), torch.randn(3, 2, dtype=torch.float64)
    value = lambda **how: log_likelihood(score, x, solver=DualWeighted(steps=16, doublings=0), **how).log_prob.sum()
    (gradient,) = torch.autograd.grad(value(differentiable=True), score.w)
    with torch.no_grad():
        score.w += 1e-5
        above = value()
        score.w -= 2e-5
        below = value()
    assert gradient.item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)
