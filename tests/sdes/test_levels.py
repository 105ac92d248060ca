"""The number of levels and the Langevin step of NCSNv2 are those of its paper."""

import math

import pytest
import torch

from score_sde.sdes.levels import langevin_step, level_count, level_ratio, overlap, variance_ratio
from score_sde.solvers.annealed_langevin import suitable_snr
from tests.reference.ncsn import answers

GIVEN = answers("techniques")


@pytest.mark.parametrize("row", range(5))
def test_the_choices_of_the_paper(row):
    """Those answers were found to 6 digits of the step."""
    dim, sigma_max, sigma_min, steps, ratio, number, step, variance, step_rounded, variance_rounded = GIVEN["choices"][row, :10]
    dim, steps, sigma_min = int(dim), int(steps), float(sigma_min)
    count, published_step = GIVEN["published"][row].tolist()

    def check(ratio, step, variance):
        found = langevin_step(sigma_min, ratio, steps)
        assert found == pytest.approx(step.item(), rel=2e-6)
        assert variance_ratio(found, sigma_min, ratio, steps) == pytest.approx(variance.item(), rel=1e-9)

    assert level_ratio(dim) == pytest.approx(ratio.item(), rel=1e-10)
    assert level_count(dim, sigma_max.item(), sigma_min) == round(number.item())
    check(level_ratio(dim), step, variance)
    check((sigma_max.item() / sigma_min) ** (1 / (round(number.item()) - 1)), step_rounded, variance_rounded)
    ratio, common, step, variance, of_published = GIVEN["choices"][row, 10:]
    found = (sigma_max.item() / sigma_min) ** (1 / (count - 1))
    assert found == pytest.approx(ratio.item(), rel=1e-10)
    assert overlap(dim, found) == pytest.approx(common.item(), rel=1e-9)
    check(found, step, variance)
    assert variance_ratio(published_step, sigma_min, found, steps) == pytest.approx(of_published.item(), rel=1e-9)


def test_the_variance_is_that_of_the_steps():
    """Langevin steps on data at one point, by hand: x + h s + sqrt(2 h) z, with s = -x / sigma^2."""
    sigma, ratio, step = 0.3, 1.2, 0.01
    variance = (ratio * sigma) ** 2
    for _ in range(4):
        variance = (1 - step / sigma**2) ** 2 * variance + 2 * step
    assert variance_ratio(step, sigma, ratio, 4) == pytest.approx(variance / sigma**2, rel=1e-12)


def test_no_other_step_leaves_less():
    best = langevin_step(0.01, 1.04, 5)
    least = variance_ratio(best, 0.01, 1.04, 5)
    assert all(variance_ratio(factor * best, 0.01, 1.04, 5) > least for factor in (0.7, 0.99, 1.01, 1.4))
    # the solver's own choice repeats the levels, and is near
    assert suitable_snr(2 * math.log(1.04), 5) == pytest.approx(math.sqrt(best / 2) / 0.01, rel=0.5)


def test_the_overlap_is_a_share_of_samples():
    """Of the norms of noise in many dimensions, sampled: those within 3 deviations of the level above."""
    dim, ratio, count = 400, 1.04, 4000
    norms = torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).norm(dim=1)
    # in units of the smaller sigma, the larger level is N(sqrt(D) ratio, ratio^2 / 2)
    centre, spread = math.sqrt(dim) * ratio, ratio / math.sqrt(2)
    share = ((norms - centre).abs() < 3 * spread).double().mean().item()
    assert overlap(dim, ratio) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count) + 0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: level_ratio(4), "no question in fewer than 5 dimensions: all ratios overlap in 4"),
        (lambda: level_ratio(10, 1.0), "wanted must lie between 0 and 0.99"),
        (lambda: level_count(10, 0.1, 0.2), "need 0 < sigma_min < sigma_max"),
        (lambda: langevin_step(0.0, 1.1, 5), "need sigma_min > 0 and a ratio above 1"),
        (lambda: langevin_step(0.1, 1.1, 0), "steps must be at least 1"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
