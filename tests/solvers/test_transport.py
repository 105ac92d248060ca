"""What carries a state with its log-density: both ways, by any object with three methods."""

import math

import pytest
import torch

from score_sde import DDIM, VPSDE, DataSpec, DualWeighted, ProbabilityFlow, bits_per_dim, log_likelihood
from score_sde.divergence import ExactDivergence
from score_sde.score import BoundScore, Counter
from score_sde.solvers.transport import Flow, Transported
from tests.oracles import mixture


class StandardNormal:
    """The score of standard normal data under the VP SDE: nothing moves along its ODE."""

    sde = VPSDE()
    dtype = torch.float64

    def __call__(self, x, t, cond=None):
        return -x


class Unmoved:
    """A transport of somebody else's, which is right for ``StandardNormal``."""

    def transport(self, flow, x, t_from, t_to, *, observe=None):
        _, traces = flow(x, torch.tensor(t_from, dtype=torch.float64))
        return Transported(x, torch.zeros_like(traces))

    def finer(self):
        return self

    def describe(self):
        return "an educated guess"


def flow_of(score):
    return Flow(BoundScore(score), ExactDivergence(), None, Counter())


def test_any_transport_gives_a_likelihood_and_its_record():
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = VPSDE().prior_log_prob(x)
    torch.testing.assert_close(log_likelihood(StandardNormal(), x, solver=Unmoved()).log_prob, expected)
    record = bits_per_dim(StandardNormal(), x, data=DataSpec((3,)), divergence="exact", solver=Unmoved(), audit=4)
    assert record.mean == pytest.approx(-expected.mean().item() / (3 * math.log(2)))
    assert (record.solver, record.solver_error, record.audited) == ("an educated guess", 0.0, 4)


def test_the_way_back_takes_back_what_the_way_there_has_changed():
    score, x = mixture().score(VPSDE()), mixture().sample(5, seed=1)
    solver = ProbabilityFlow(method="rk45", rtol=1e-8, atol=1e-8)
    there = solver.transport(flow_of(score), x, 0.1, 0.9)
    back = solver.transport(flow_of(score), there.state, 0.9, 0.1)
    torch.testing.assert_close(back.state, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.changes, -there.changes, rtol=0, atol=1e-5)
    exact = score.log_prob(x, 0.1) - score.log_prob(there.state, 0.9)
    torch.testing.assert_close(there.changes[0], exact, rtol=0, atol=1e-5)


def test_between_any_two_times_both_solvers_agree():
    score, x = mixture().score(VPSDE()), mixture().sample(5, seed=1)
    found = [
        solver.transport(flow_of(score), x, 0.2, 0.7)
        for solver in (DualWeighted(steps=64), ProbabilityFlow(method="rk45", rtol=1e-7, atol=1e-7))
    ]
    log_p = [score.log_prob(one.state, 0.7) + one.changes[0] for one in found]
    torch.testing.assert_close(log_p[0], log_p[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(log_p[1], score.log_prob(x, 0.2), rtol=0, atol=1e-5)


def test_what_cannot_carry_a_density_is_refused_by_name():
    score, x = mixture().score(VPSDE()), mixture().sample(2)
    with pytest.raises(TypeError, match="log p needs a ProbabilityFlow or a DualWeighted, got DDIM"):
        log_likelihood(score, x, solver=DDIM())
    with pytest.raises(ValueError, match="DualWeighted goes from data to noise only"):
        DualWeighted().transport(flow_of(score), x, 0.9, 0.1)
