"""log p by the ODE against the closed form of a mixture."""

import math
import subprocess
import sys

import pytest
import torch

from score_sde import VESDE, VPSDE, GaussianMixture, Hutchinson, ProbabilityFlow, SolverError, SubVPSDE, log_likelihood
from tests.oracles import SDE_CASES, BrokenScore, Recorder, mixture

PUBLISHED = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=50.0)}
TIGHT = ProbabilityFlow(rtol=1e-6, atol=1e-6)
EACH = ProbabilityFlow(method="rk45", rtol=1e-6, atol=1e-6)


def check_closed_form(sde, event, dtype, count, solver=TIGHT):
    """Within 1e-4 nats/dim, the exact marginal at T as the prior: what is left is the solver's error."""
    truth, single = mixture(event).score(sde), mixture(event, dtype).score(sde)
    x = mixture(event).sample(count, seed=1)
    result = log_likelihood(single, x.to(dtype), solver=solver, prior=lambda z: single.log_prob(z, sde.T))
    error = (result.log_prob.double() - truth.log_prob(x, sde.t_min)).abs().max() / x[0].numel()
    assert result.log_prob.dtype == dtype
    assert error < 1e-4
    assert result.vjps == result.nfe * x[0].numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("event", [(2,), (4, 4)], ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("solver", [TIGHT, EACH], ids=["shared", "each"])
@pytest.mark.covering(1)
def test_log_p_of_a_mixture(name, event, dtype, solver):
    check_closed_form(PUBLISHED[name], event, dtype, 8, solver)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("event", [(16,), (3, 5, 5)], ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_log_p_of_a_larger_mixture(name, event, dtype):
    check_closed_form(PUBLISHED[name], event, dtype, 4)


def test_log_p_under_every_sde(each_sde):
    check_closed_form(each_sde, (2,), torch.float64, 4)


@pytest.mark.parametrize("event", [(2,), (1, 2), (1, 2, 1), (1, 1, 2, 1)], ids=str)
def test_defaults_give_the_known_density(event):
    """N(0, I) stays N(0, I) under VP: the prior is exact, and the defaults need no tuning."""
    score = GaussianMixture(torch.zeros(1, *event), [1.0]).score(VPSDE())
    x = torch.randn(5, *event)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(log_likelihood(score, x).log_prob, expected, rtol=0, atol=2e-3)


def test_prior_mismatch_is_the_only_difference_between_the_priors():
    score = mixture().score(VPSDE())
    x = mixture().sample(6, seed=2)
    own = log_likelihood(score, x, solver=TIGHT)
    exact = log_likelihood(score, x, solver=TIGHT, prior=lambda z: score.log_prob(z, 1.0))
    mismatch = score.sde.prior_log_prob(own.latent) - score.log_prob(own.latent, 1.0)
    torch.testing.assert_close(own.log_prob - exact.log_prob, mismatch)
    assert mismatch.abs().max() > 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("method", ["rk4", "rk45"])
@pytest.mark.quick("rk45")
def test_a_sample_alone_and_in_a_batch_of_64(name, method):
    """Fixed steps, or steps for each sample: its neighbours do not matter, however far off one of them is."""
    sde = PUBLISHED[name]
    score, x = mixture((4, 4)).score(sde), mixture((4, 4)).sample(64, seed=3)
    x[5] *= 5
    solver = ProbabilityFlow(method=method, steps=10, grid="log_snr", rtol=1e-3, atol=1e-3)
    prior = lambda z: score.log_prob(z, sde.T)
    together = log_likelihood(score, x, solver=solver, prior=prior).log_prob
    for i in (0, 5, 17):
        alone = log_likelihood(score, x[i : i + 1], solver=solver, prior=prior).log_prob
        assert (together[i] - alone[0]).abs() / 16 < 1e-6
    few = log_likelihood(score, x[10:20], solver=solver, prior=prior).log_prob
    assert (together[10:20] - few).abs().max() / 16 < 1e-6


def test_what_shared_steps_cost():
    """dopri5 takes the steps that the worst of a batch needs: a sample changes with its neighbours, by about the tolerance."""
    score, x = mixture((4, 4)).score(VPSDE()), mixture((4, 4)).sample(64, seed=3)
    solver = ProbabilityFlow(rtol=1e-5, atol=1e-5)
    prior = lambda z: score.log_prob(z, 1.0)
    together = log_likelihood(score, x, solver=solver, prior=prior).log_prob
    alone = log_likelihood(score, x[17:18], solver=solver, prior=prior).log_prob
    assert 1e-8 < (together[17] - alone[0]).abs() / 16 < 1e-4


def test_hutchinson_agrees_with_the_exact_trace_within_its_noise():
    score, x = mixture((3,)).score(VPSDE()), mixture((3,)).sample(1, seed=4).expand(400, 3)
    solver = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    exact = log_likelihood(score, x[:1], solver=solver).log_prob
    for distribution in ("rademacher", "gaussian"):
        one = log_likelihood(score, x, solver=solver, divergence=Hutchinson(1, distribution)).log_prob
        four = log_likelihood(score, x, solver=solver, divergence=Hutchinson(4, distribution)).log_prob
        assert abs(one.mean() - exact) < 4 * one.std() / 20 + 1e-3
        assert abs(four.mean() - exact) < 4 * four.std() / 20 + 1e-3
        assert (four.std() / one.std()).item() == pytest.approx(0.5, rel=0.25)


def test_probes_belong_to_the_sample_and_the_seed():
    score, x = mixture((3,)).score(VPSDE()), mixture((3,)).sample(5, seed=4)
    options = {"solver": ProbabilityFlow(method="rk4", steps=10, grid="log_snr"), "divergence": "hutchinson"}
    together = log_likelihood(score, x, **options).log_prob
    torch.testing.assert_close(together[3:], log_likelihood(score, x[3:], first=3, **options).log_prob)
    assert not torch.allclose(together, log_likelihood(score, x, seed=1, **options).log_prob)


def test_evaluations_are_counted_and_stay_in_range(each_sde):
    seen = []
    result = log_likelihood(Recorder(mixture().score(each_sde), seen), mixture().sample(3), divergence=Hutchinson(3))
    assert result.nfe == len(seen)
    assert result.vjps == 3 * result.nfe
    assert min(seen) >= each_sde.t_min * (1 - 1e-12)
    assert max(seen) <= each_sde.T


def test_conditional_log_p_is_that_of_the_component():
    score = mixture().score(VPSDE())
    x, cond = mixture().sample(4, seed=1), torch.tensor([2, 2, 2, 2])
    truth = mixture()
    covariance = (truth.basis @ torch.diag_embed(truth.variances) @ truth.basis.mT)[2:3]
    alone = GaussianMixture(truth.means[2:3], covariance).score(VPSDE())
    found = log_likelihood(score, x, cond=cond, solver=TIGHT, prior=lambda z: alone.log_prob(z, 1.0)).log_prob
    torch.testing.assert_close(found, alone.log_prob(x, 1e-5), rtol=0, atol=1e-4)


def test_nan_is_a_named_error():
    score = BrokenScore(mixture().score(VPSDE()), lambda t: t > 0.2)
    with pytest.raises(SolverError, match=r"not finite at t = 0\.[2-9]"):
        log_likelihood(score, torch.zeros(2, 2, dtype=torch.float64))


def test_impossible_tolerance_is_a_named_error(monkeypatch):
    monkeypatch.setattr("score_sde.solvers.probability_flow.MAX_STEPS", 100)
    score = mixture((2,), torch.float32).score(SDE_CASES["vp"])
    for tolerance in (1e-14, 1e-30):
        with pytest.raises(SolverError, match="use a larger rtol and atol"):
            log_likelihood(score, torch.zeros(2, 2), solver=ProbabilityFlow(rtol=tolerance, atol=tolerance))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "exat"}, "choose one of exact, hutchinson"),
        ({"x": math.nan}, "NaN"),
        ({"t_min": 2.0}, "t_min must lie"),
    ],
)
def test_bad_input_is_refused(options, message):
    x = torch.full((1, 2), options.pop("x", 0.0))
    with pytest.raises(ValueError, match=message):
        log_likelihood(mixture((2,), torch.float32).score(VPSDE()), x, **options)


@pytest.mark.slow
def test_the_exact_divergence_of_an_image_takes_little_memory():
    """784 products of a U-Net with 2 images: by all at once they would take gigabytes, in chunks they take less than 0.3."""
    program = """
import resource, torch
from score_sde import VPSDE, DataSpec, DualWeighted, ScoreModel, log_likelihood
from score_sde.networks import UNet
torch.set_num_threads(1)
network = UNet((1, 28, 28), width=16, multipliers=(1, 2), blocks=1, attention=(), head_width=16)
model, x = ScoreModel(network, VPSDE(), DataSpec((1, 28, 28))).eval(), torch.randn(2, 1, 28, 28)
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
with torch.no_grad():
    model(x, torch.full((2,), 0.5))
before = used()
found = log_likelihood(model, x, solver=DualWeighted(steps=1, doublings=0), divergence="exact")
print(found.vjps, used() - before)
"""
    done = subprocess.run([sys.executable, "-c", "import sys" + program], capture_output=True, text=True, check=True)
    products, gigabytes = map(float, done.stdout.split())
    assert products == 2 * 784
    assert gigabytes < 0.3
