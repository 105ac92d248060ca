"""The comparison of two solvers on the same latents."""

import math

import numpy as np
import pytest
from scipy.stats import trim_mean

from score_sde.paired import gain, tail, typical


def errors(seed, count=64, between=0.0):
    """Errors of samples, a share of which lies between basins: a thousand times as large."""
    random = np.random.default_rng(seed)
    values = np.exp(0.5 * random.normal(size=count))
    return np.where(random.random(count) < between, 1000 * values, values)


def test_the_typical_error_is_the_trimmed_mean_of_logarithms():
    values = errors(0, 63)
    assert typical(values) == pytest.approx(math.exp(trim_mean(np.log(values), 0.25)))


@pytest.mark.parametrize("outlier", [1e3, 1e9, math.inf, math.nan, 0.0])
def test_few_samples_do_not_rule_it(outlier):
    """Neither the typical error nor the gain goes far, whatever becomes of 3 samples of 64."""
    ours, others = errors(0), 1.5 * errors(0) * errors(1) ** 0.2
    spoiled = np.concatenate([np.full(3, outlier), ours[3:]])
    assert typical(spoiled) == pytest.approx(typical(ours), rel=0.1)
    before, after = gain(ours, others), gain(spoiled, others)
    assert after.log == pytest.approx(before.log, abs=0.1)
    assert max(before.p_value, after.p_value) < 1e-4


def test_failures_of_half_of_the_samples_are_infinite():
    failed = np.concatenate([np.full(32, math.inf), errors(0, 32)])
    assert typical(failed) == math.inf
    assert gain(failed, errors(0)).p_value == 1
    assert gain(errors(0), failed).p_value == 0
    assert gain(failed, failed).p_value == 1


def test_equal_errors_are_no_gain():
    assert gain(errors(0), errors(0)) == (0, 0, 1)


@pytest.mark.parametrize("count", [16, 64])
def test_a_gain_is_found_by_chance_as_often_as_is_said(count):
    """Two solvers that are equally good, each with samples between basins of its own: p-values are below 5 % about as often."""
    found = [gain(errors(2 * i, count, 0.05), errors(2 * i + 1, count, 0.05)) for i in range(2000)]
    assert np.mean([g.p_value < 0.05 for g in found]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([g.stderr**2 for g in found]) == pytest.approx(np.var([g.log for g in found]), rel=0.25)


def test_a_gain_is_seen_where_samples_between_basins_hide_it():
    """A fifth less, in pairs, with every twentieth sample thrown by either solver."""
    random = np.random.default_rng(0)
    difficulty = np.exp(random.normal(size=128))
    thrown = lambda: np.where(random.random(128) < 0.05, 1000.0, 1.0) * np.exp(0.2 * random.normal(size=128))
    ours, others = 0.8 * difficulty * thrown(), difficulty * thrown()
    found = gain(ours, others)
    assert found.log == pytest.approx(-math.log(0.8), abs=3 * found.stderr)
    assert found.p_value < 0.01


def test_lost_samples_are_seen_in_the_tail():
    values = errors(0)
    assert tail(values, values) == 1
    assert tail(2 * values, values) == pytest.approx(2)
    lost = np.concatenate([[1e4], values[1:]])
    assert tail(lost, values) > 100
    assert tail(np.concatenate([[math.nan], values[1:]]), values) == math.inf
