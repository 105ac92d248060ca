import pytest
import torch

from score_sde.tensors import SampleNoise, condition_of, derive_seed, expand, total


def test_a_total_is_the_sum_to_the_last_bit():
    terms = [torch.tensor([-0.0, 1e8, 0.1]), torch.tensor([-0.0, 1.0, 0.2]), torch.tensor([-0.0, -1e8, 0.3])]
    for count in (1, 2, 3):
        assert total(iter(terms[:count])).numpy().tobytes() == sum(terms[:count]).numpy().tobytes()


def test_conditions_are_those_of_the_samples_asked_for():
    rows, places, classes = torch.tensor([2, 0]), torch.arange(6.0).reshape(3, 2), torch.tensor([5, 6, 7])
    named = condition_of({"place": places, "class": classes}, rows)
    assert named["place"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert named["class"].tolist() == condition_of(classes, rows).tolist() == [7, 5]
    assert condition_of(None, rows) is None


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 5), (4, 1, 2, 2), (4, 1, 2, 3, 2)])
def test_expand_multiplies_each_sample_by_its_own_value(shape):
    x, t = torch.randn(shape), torch.randn(4)
    product = expand(t, x) * x
    assert product.shape == x.shape
    for i in range(4):
        assert torch.equal(product[i], t[i] * x[i])


def test_expand_refuses_a_value_per_something_else():
    # (4, 2) times (2,) would broadcast over the event without a word
    with pytest.raises(ValueError, match="one value for each of 4 samples"):
        expand(torch.randn(2), torch.randn(4, 2))


@pytest.mark.parametrize("event", [(2,), (3, 8, 8), (5000,)])
def test_noise_of_a_sample_does_not_depend_on_its_batch(event):
    together = SampleNoise(3, (5, *event))
    later = SampleNoise(3, (2, *event), first=3)
    for _ in range(70):
        assert torch.equal(together.normal()[3:], later.normal())
    assert torch.equal(together.uniform()[3:], later.uniform())
    assert torch.equal(together.rademacher()[3:], later.rademacher())


def test_samples_may_be_given_by_their_indices():
    every, some = SampleNoise(3, (6, 2)), SampleNoise(3, (3, 2), first=[4, 0, 5])
    assert torch.equal(every.normal()[[4, 0, 5]], some.normal())
    assert torch.equal(every.uniform()[[4, 0, 5]], some.uniform())
    with pytest.raises(ValueError, match="one for each of 3 samples, got 2"):
        SampleNoise(3, (3, 2), first=[4, 0])


def test_noise_is_standard_normal_and_independent():
    noise = SampleNoise(0, (2000, 3))
    draws = torch.stack([noise.normal() for _ in range(100)])
    assert draws.mean().abs() < 4 / 600000**0.5
    assert abs(draws.var() - 1) < 4 * (2 / 600000) ** 0.5
    correlation = (draws[1:] * draws[:-1]).mean()
    across = (draws[:, 1:] * draws[:, :-1]).mean()
    assert max(abs(correlation), abs(across)) < 4 / 590000**0.5


def test_streams_differ_by_seed_and_purpose():
    first = SampleNoise(0, (1, 4)).normal()
    assert not torch.equal(first, SampleNoise(1, (1, 4)).normal())
    assert not torch.equal(first, SampleNoise(0, (1, 4), purpose="prior").normal())
    assert len({derive_seed(0, "a", 1), derive_seed(0, "a", 2), derive_seed(0, "b", 1), derive_seed(1, "a", 1)}) == 4
