"""The numbers of a step: one stream for each purpose, whatever the order, whatever the process."""

import itertools

import pytest
import torch

from score_sde import VPSDE
from score_sde.draws import Draws
from score_sde.time_sampling import TIMES

PURPOSES = ("noise", "dequantization", "flip", "class dropout", "torch")


def test_the_order_of_asking_does_not_matter():
    asked = {}
    for order in itertools.permutations(PURPOSES[:3]):
        draws = Draws(0, 5, 4)
        for purpose in order:
            asked.setdefault(purpose, []).append(draws.uniform(purpose, (4, 3)))
    assert all(torch.equal(found[0], again) for found in asked.values() for again in found)


def test_streams_differ_by_seed_step_and_purpose():
    runs = [(0, 0), (0, 1), (1, 0), (10, 1), (1, 11), (1, 1), (11, 1)]
    drawn = [Draws(seed, step, 1).uniform(purpose, (1, 8)) for seed, step in runs for purpose in PURPOSES]
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.isclose(a, b).any()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_steps_are_independent(purpose):
    """The first numbers of many steps are as uniform, and as uncorrelated, as numbers of one stream would be."""
    first = torch.cat([Draws(3, step, 1).uniform(purpose, (1, 2)) for step in range(4000)])
    assert abs(first.mean().item() - 0.5) < 5 * 12**-0.5 / 8000**0.5
    assert abs(first[:, 0].var().item() * 12 - 1) < 0.1
    assert abs(torch.corrcoef(first.T)[0, 1].item()) < 0.08
    assert abs(torch.corrcoef(torch.stack([first[1:, 0], first[:-1, 0]]))[0, 1].item()) < 0.08


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_processes_take_their_rows_of_one_batch(kind):
    whole = getattr(Draws(0, 2, 6), kind)("noise", (6, 1, 3))
    parts = [getattr(Draws(0, 2, 6, rows=rows), kind)("noise", (2, 1, 3)) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("rule", TIMES)
def test_times_are_those_of_the_global_batch(rule):
    """A stratified rule spreads all samples over the interval, not those of each process."""
    sde = VPSDE()
    t, weight = Draws(0, 2, 6).times(TIMES[rule](), sde)
    parts = [Draws(0, 2, 6, rows=slice(start, start + 3)).times(TIMES[rule](), sde) for start in (0, 3)]
    assert torch.equal(torch.cat([part[0] for part in parts]), t)
    assert torch.equal(torch.cat([part[1] for part in parts]), weight)


def test_a_shape_of_other_samples_is_refused():
    with pytest.raises(ValueError, match=r"noise: expected a shape of 2 samples, got \(6, 3\)"):
        Draws(0, 0, 6, rows=slice(2)).normal("noise", (6, 3))
