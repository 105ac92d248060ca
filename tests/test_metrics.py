"""Distances against what is known of them in closed form, or counted by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from score_sde import metrics
from score_sde.metrics import EnergyDistance, energy_distance, precision_recall, principal_components, sliced_wasserstein


def normal(count, dim, seed, mean=0.0):
    return mean + torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# sliced Wasserstein distance


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


# energy distance


def shifted_normals(mean: float) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of N(0, 1) and N(mean, 1): differences are normal with variance 2, folded at 0."""
    absolute = stats.foldnorm(abs(mean) / math.sqrt(2), scale=math.sqrt(2)).mean()
    return 2 * absolute - 2 * 2 / math.sqrt(math.pi)


@pytest.mark.parametrize("mean", [0.0, 0.5, 2.0])
def test_energy_distance_of_two_normals(mean):
    """The mean over many small sets: it does not depend on their sizes, as the distance of a V-statistic would."""
    found = torch.tensor(
        [energy_distance(normal(8, 1, i), normal(15, 1, 10_000 + i, mean), resamples=1)[0] for i in range(500)]
    )
    assert found.mean().item() == pytest.approx(shifted_normals(mean), abs=4 * found.std().item() / math.sqrt(len(found)))
    assert found.std().item() / math.sqrt(len(found)) < 0.05  # a V-statistic is 0.22 too large


def test_energy_distance_is_the_integral_of_the_squared_difference_of_distributions():
    """D = 2 int (F - G)^2 dx on the line, of which scipy takes the root, with the pairs of a point and itself."""
    a, b = normal(30, 1, 1), normal(50, 1, 2, 0.7)
    with_itself = stats.energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    spread = [(x[:, None, 0] - x[None, :, 0]).abs().sum().item() / len(x) ** 2 / (len(x) - 1) for x in (a, b)]
    assert energy_distance(a, b).value == pytest.approx(with_itself - sum(spread), rel=1e-9)


def test_energy_distance_counted_by_hand():
    a, b = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    between = (0 + 1 + 2 + 5 + math.hypot(3, 3) + math.hypot(3, 2)) / 6
    assert energy_distance(a, b).value == pytest.approx(2 * between - 5 - 4 / 3, rel=1e-12)


def test_the_interval_covers_the_distance():
    true = shifted_normals(1.0)
    covered = 0
    for i in range(100):
        _, low, high = energy_distance(normal(60, 1, i), normal(90, 1, 1000 + i, 1.0), seed=i)
        covered += low <= true <= high
    assert 90 <= covered <= 99  # 99: an interval far too wide would always cover it


def test_the_interval_of_equal_distributions_covers_zero_and_is_not_shifted():
    estimates = [energy_distance(normal(30, 2, i), normal(40, 2, 1000 + i), seed=i) for i in range(60)]
    assert sum(e.low <= 0 <= e.high for e in estimates) >= 56
    # the bias of pairs of copies would be 1.8/30 + 1.8/40 = 0.10, and most intervals would lie above their estimates
    assert np.mean([e.low < e.value < e.high for e in estimates]) == 1
    assert np.mean([e.high - e.low for e in estimates]) < 0.4


def test_the_interval_narrows_with_the_level_and_the_size():
    a, b = normal(100, 3, 0), normal(120, 3, 1, 0.5)
    wide, narrow = (energy_distance(a, b, level=level) for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    large = energy_distance(normal(1600, 3, 0), normal(1920, 3, 1, 0.5))
    assert (large.high - large.low) < (wide.high - wide.low) / 2.5  # 4 times as narrow, but for chance


def test_energy_distance_scales_with_the_units_and_ignores_how_the_event_is_shaped():
    a, b = normal(40, 8, 0), normal(30, 8, 1, 0.3)
    found = energy_distance(a, b)
    assert energy_distance(10 * a + 5, 10 * b + 5) == pytest.approx([10 * x for x in found], rel=1e-9)
    assert energy_distance(a.reshape(40, 2, 2, 2), b.reshape(30, 2, 2, 2)) == found
    assert energy_distance(a.float() + 1000, b.float() + 1000).value == pytest.approx(found.value, abs=1e-3)


def test_the_data_is_kept_and_the_seed_draws_the_resamples():
    a, b = normal(40, 2, 0), normal(30, 2, 1)
    state = torch.get_rng_state()
    to_b = EnergyDistance(b, seed=3)
    assert to_b(a) == to_b(a) == energy_distance(a, b, seed=3)
    assert to_b(a).value == energy_distance(a, b, seed=4).value
    assert to_b(a) != energy_distance(a, b, seed=4)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_what_is_held_in_memory_does_not_matter(monkeypatch, block):
    a, b = normal(41, 3, 0), normal(30, 3, 1)
    energy, shares = energy_distance(a, b), precision_recall(a, b)
    monkeypatch.setattr(metrics, "BLOCK", block)
    assert energy_distance(a, b) == pytest.approx(energy, rel=1e-9)
    assert precision_recall(a, b) == shares


def test_two_points_have_an_energy_distance_and_one_has_not():
    found = energy_distance(torch.zeros(2, 3), torch.ones(2, 3))
    assert found == pytest.approx((2 * math.sqrt(3),) * 3, rel=1e-6)
    for a, b in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match="at least 2 in each"):
            energy_distance(torch.zeros(a, 3), torch.zeros(b, 3))
    with pytest.raises(ValueError, match="expected two sets of events of one shape"):
        energy_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    for wrong in ({"resamples": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="resamples must be positive and level between 0 and 1"):
            energy_distance(torch.zeros(5, 3), torch.zeros(5, 3), **wrong)


# precision and recall


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    a = normal(100, 3, 0)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 100) == (0, 0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    two = torch.cat([normal(100, 3, 0), normal(100, 3, 1, 50.0)])
    one = two[:100]
    precision, recall = precision_recall(one, two)
    assert (precision, recall) == (1, 0.5)
    precision, recall = precision_recall(two, one)
    assert (precision, recall) == (0.5, 1)


def test_precision_and_recall_counted_by_hand():
    """On the line, k = 1: the data's radii are 1, 1, 3, so it covers -1 ... 2 and 1 ... 7; the samples' are 2.5, 2.5, 10."""
    data, samples = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[7.0], [9.5], [19.5]])
    assert precision_recall(samples, data, k=1) == pytest.approx((1 / 3, 0))  # 7 is covered, at the edge; 4.5 ... 29.5
    assert precision_recall(samples, data, k=2) == pytest.approx((1 / 3, 1))  # radii 4, 3, 4 reach 8; 12.5, 10, 12.5 all


def test_precision_of_one_distribution_is_high_and_balls_grow_with_k():
    a, b = normal(300, 2, 0), normal(300, 2, 1)
    shares = [precision_recall(a, b, k=k) for k in (1, 3, 5)]
    assert shares[0].precision < shares[1].precision < shares[2].precision
    assert min(shares[1]) > 0.85


def test_shapes_and_features():
    a, b = normal(60, 8, 0), normal(50, 8, 1, 0.5)
    shares = precision_recall(a, b)
    assert precision_recall(a.reshape(60, 2, 2, 2), b.reshape(50, 2, 2, 2)) == shares
    first = precision_recall(a.reshape(60, 2, 4), b.reshape(50, 2, 4), features=lambda x: x[:, 0, :1])
    assert first == precision_recall(a[:, :1], b[:, :1]) != shares
    with pytest.raises(ValueError, match="features must return a vector for each event"):
        precision_recall(a, b, features=lambda x: x[:, None])
    with pytest.raises(ValueError, match="features must return a vector for each event"):
        precision_recall(a, b, features=lambda x: x[:10])


@pytest.mark.parametrize(
    ("samples", "data", "k", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), 3, "more than k = 3"),
        (torch.zeros(9, 2), torch.zeros(3, 2), 3, "more than k = 3"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 3, "events of one shape"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "k must be at least 1"),
    ],
)
def test_sets_without_precision_and_recall(samples, data, k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(samples, data, k=k)


@pytest.mark.parametrize("count", [200, 30])
def test_principal_components_keep_the_distances_of_the_data(count):
    """Data of three large directions in 50 dimensions, more of it than dimensions or less."""
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 50, generator=random, dtype=torch.float64)).Q
    scale = torch.full((50,), 1e-3, dtype=torch.float64)
    scale[:3] = torch.tensor([3.0, 2.0, 1.0])
    data = (torch.randn(count, 50, generator=random, dtype=torch.float64) * scale) @ basis.T + 7
    features = principal_components(data, components=3)
    mapped = features(data)
    assert mapped.shape == (count, 4)
    assert torch.cdist(mapped, mapped) == pytest.approx(torch.cdist(data, data), abs=0.01)
    away = features(data[:5] + 2.0 * basis[:, 10])  # off the subspace: only the last feature shows it
    assert away[:, :3] == pytest.approx(mapped[:5, :3], abs=0.01)
    assert away[:, 3] == pytest.approx(2.0, abs=0.02)


def test_few_coordinates_are_their_own_features():
    x = normal(20, 32, 0).reshape(20, 2, 16)
    assert torch.equal(principal_components(x)(x), x.flatten(1))
    with pytest.raises(ValueError, match="components must be at least 1"):
        principal_components(x, components=0)
