"""The sliced Wasserstein distance against what is known of it in closed form."""

import math

import pytest
import torch

from score_sde.metrics import sliced_wasserstein


def test_zero_between_equal_sets_in_any_order():
    a = torch.randn(100, 3, dtype=torch.float64)
    assert sliced_wasserstein(a, a) == 0
    assert sliced_wasserstein(a, a[torch.randperm(100)]) == pytest.approx(0, abs=1e-12)


def test_a_set_repeated_is_the_same_distribution():
    a = torch.randn(50, 3, dtype=torch.float64)
    assert sliced_wasserstein(a, a.repeat(2, 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5, 64])
def test_a_shift_costs_its_length_over_the_root_of_the_dimension(dim):
    """W2 of the projections is |v . theta|, and E (v . theta)^2 = |v|^2 / dim over the sphere."""
    a, v = torch.randn(40, dim, dtype=torch.float64), torch.randn(dim, dtype=torch.float64)
    expected = v.norm().item() / math.sqrt(dim)
    assert sliced_wasserstein(a, a + v, directions=20000) == pytest.approx(expected, rel=0.03)


def test_on_the_line_it_is_the_wasserstein_distance():
    a, b = torch.tensor([[1.0], [0.0], [5.0]]), torch.tensor([[0.0], [8.0], [1.0]])
    assert sliced_wasserstein(a, b, directions=1) == pytest.approx(math.sqrt(9 / 3))  # 0-0, 1-1, 5-8
    wide = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000)[:, None]
    assert sliced_wasserstein(wide, 3 * wide[::4] + 1, directions=4) == pytest.approx(math.sqrt(2**2 + 1**2), rel=0.01)


def test_symmetric_and_of_different_sizes():
    a, b = torch.randn(101, 4, dtype=torch.float64), 2 * torch.randn(37, 4, dtype=torch.float64) + 1
    distance = sliced_wasserstein(a, b)
    assert distance == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    assert 0.5 < distance < 3


def test_sets_of_one_distribution_come_nearer_as_they_grow():
    distances = [sliced_wasserstein(torch.randn(n, 2), torch.randn(n, 2), directions=128) for n in (50, 5000)]
    assert distances[1] < distances[0] / 3


def test_scales_with_the_units_and_ignores_how_the_event_is_shaped():
    a, b = torch.randn(60, 8, dtype=torch.float64), torch.randn(60, 8, dtype=torch.float64) + 1
    distance = sliced_wasserstein(a, b)
    assert sliced_wasserstein(10 * a, 10 * b) == pytest.approx(10 * distance, rel=1e-12)
    assert sliced_wasserstein(a.reshape(60, 2, 2, 2), b.reshape(60, 2, 2, 2)) == distance
    assert sliced_wasserstein(a.float(), b) == pytest.approx(distance, rel=1e-5)


def test_the_seed_draws_the_directions():
    a, b = torch.randn(60, 3), torch.randn(60, 3) + torch.tensor([1.0, 0.0, 0.0])
    state = torch.get_rng_state()
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 3)),
        (torch.zeros(4, 6), torch.zeros(4, 2, 3)),
        (torch.zeros(0, 2), torch.zeros(4, 2)),
        (torch.zeros(4, 2), torch.zeros(0, 2)),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="expected two sets of events of one shape"):
        sliced_wasserstein(a, b)
