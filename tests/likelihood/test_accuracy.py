"""The choice of a solver by a pilot, and probes that are added, on values that are given."""

import pytest
import torch

from score_sde import VPSDE, DataSpec, Hutchinson, SolverError
from score_sde.likelihood import DualWeighted
from score_sde.likelihood.accuracy import choose_solver, enough_probes
from score_sde.likelihood.evaluation import Estimator, Values
from tests.oracles import mixture


def test_a_pilot_that_converges_slowly_is_not_given_up():
    """Changes of 1, 0.6 and 0.4: each more than half of the one before, but the last is small enough."""
    biases = {48: 2.0, 96: 1.0, 192: 0.4, 384: 0.0}

    def pilot(solver):
        numbers = torch.full((8,), 1.0, dtype=torch.float64)
        return Values(biases.get(solver.steps, 0.5) * numbers, solver.steps * numbers, numbers)

    assert choose_solver(pilot, 0.9).steps == 12
    with pytest.raises(SolverError, match="out of reach: with 384 steps"):
        choose_solver(pilot, 0.7)


def test_added_probes_count_by_their_number():
    """2 probes that say 1 and k more that say 2, of the same quality: the mean over all, and the variance of that mean."""
    estimator = Estimator(mixture().score(VPSDE()), DataSpec((100,)), None, 1, False, Hutchinson(2), DualWeighted(), 0, 0)
    ones = torch.ones(4, dtype=torch.float64)
    asked = []

    def again(changed):
        asked.append(changed)
        probes = changed.divergence.probes
        return Values(2 * ones, 30 * ones, 30 * probes * ones, 0.06 / probes * ones)

    start = Values(ones, 30 * ones, 60 * ones, 0.03 * ones)
    used, found, variance = enough_probes(estimator, start, 0.03, again, 0.05)
    (more,) = (changed.divergence.probes for changed in asked)
    assert asked[0].probe_seed != estimator.probe_seed
    assert used.divergence == Hutchinson(2 + more)
    torch.testing.assert_close(found.bits, (2 + 2 * more) / (2 + more) * ones)
    assert variance == pytest.approx(0.06 / (2 + more))
    assert variance <= 4 * 0.05**2
    assert found.nfe[0] == 60
    assert found.vjps[0] == 30 * (2 + more)
