"""The posterior of a mixture's components against its closed form."""

import pytest
import torch

from score_sde import VESDE, VPSDE, GaussianMixture, Hutchinson, ProbabilityFlow, class_posterior
from score_sde.likelihood import DualWeighted
from tests.oracles import Recorder, mixture

FINE = DualWeighted(steps=96, tolerance=1e-3)


def component(truth, k):
    """A single component as a mixture of its own."""
    covariance = truth.basis[k] @ truth.variances[k].diag() @ truth.basis[k].mT
    return GaussianMixture(truth.means[k].reshape(1, *truth.event), (covariance + covariance.mT)[None] / 2)


@pytest.mark.parametrize("event", [(2,), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=1000.0)], ids=["vp", "ve"])
@pytest.mark.covering(1)
def test_posterior_of_the_components_of_a_mixture(sde, event):
    """Its own weights as the prior: the share of each component in the density at t_min."""
    truth = mixture(event)
    truth.means.mul_(0.3)  # so that its components overlap
    score, x = truth.score(sde), truth.sample(32, seed=1)
    logs = [component(truth, k).score(sde).log_prob(x, sde.t_min) + truth.weights[k].log() for k in range(3)]
    expected = torch.stack(logs, 1).log_softmax(1)
    found = class_posterior(score, x, 3, prior=truth.weights, solver=FINE, divergence="exact")
    assert found.exp().sum(1).tolist() == pytest.approx([1.0] * 32)
    near = expected > -8  # far below, the prior at T decides: the components' means are not quite forgotten there
    torch.testing.assert_close(found[near], expected[near], rtol=0, atol=0.02)
    assert (expected.max(1).values.exp() < 0.99).double().mean() > 0.2  # not all of them are easy


def test_equal_priors_and_conditions_that_are_given():
    score, x = mixture().score(VPSDE()), mixture().sample(5, seed=1)
    every = class_posterior(score, x, 3)
    torch.testing.assert_close(class_posterior(score, x, 3, prior=[2.0, 2.0, 2.0]), every)
    reversed_ = class_posterior(score, x, torch.tensor([2, 1, 0]))
    torch.testing.assert_close(reversed_, every.flip(1))
    assert class_posterior(score, x, 1).abs().max() == 0
    certain = class_posterior(score, x, 3, prior=[0.0, 1.0, 0.0]).exp()
    torch.testing.assert_close(certain, torch.tensor([[0.0, 1.0, 0.0]]).double().expand(5, 3))


def test_classes_share_the_probes_of_a_sample():
    """Two classes that are the same have the same log p, whatever the probes."""
    score, x = mixture((3,)).score(VPSDE()), mixture((3,)).sample(6, seed=1)
    same = torch.tensor([1, 1])
    found = class_posterior(score, x, same, divergence=Hutchinson(1, "gaussian"))
    torch.testing.assert_close(found.exp(), torch.full((6, 2), 0.5).double())


def test_each_class_is_solved_once():
    times, solver = [], ProbabilityFlow(method="midpoint", steps=4)
    class_posterior(Recorder(mixture().score(VPSDE()), times), mixture().sample(4), 3, solver=solver)
    assert len(times) == 3 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "at least one class"),
        ({"classes": 3, "prior": [0.5, 0.5]}, "prior must be 3 numbers"),
        ({"classes": 2, "prior": [-1.0, 2.0]}, "not negative"),
        ({"classes": 2, "prior": [0.0, 0.0]}, "not all zero"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        class_posterior(mixture().score(VPSDE()), mixture().sample(2), **options)
