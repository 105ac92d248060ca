"""Adaptive steps: the pair of methods, unbiased noise, the tolerance, and independence of the batch."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from score_sde import SolverError
from score_sde.solvers import adaptive_sde
from score_sde.solvers.adaptive_sde import AdaptiveSDE, Increments
from score_sde.solvers.stochastic_heun import StochasticHeun
from score_sde.tensors import SampleNoise
from tests.oracles import SDE_CASES, BatchNoise, mixture


@dataclass(frozen=True)
class NoScore:
    """The score 0: what is left is noise."""

    sde: object

    def __call__(self, x, t, cond=None):
        return torch.zeros_like(x)


# the Brownian motion


def test_a_shorter_step_takes_a_part_of_what_is_known():
    """An increment over [0, 1], cut at 0.4 and the first part again at 0.1: the parts add up to it, in order of time."""
    known = Increments(torch.zeros(2, 1, dtype=torch.float64))
    at = lambda value: torch.full((2,), value, dtype=torch.float64)
    z = iter(SampleNoise(0, (2, 1), dtype=torch.float64).normal() for _ in range(20))
    _, whole = known.next(at(0.0), at(1.0), next(z))
    known.next(at(0.0), at(0.4), next(z))
    parts, start, none, used = [], at(0.0), torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    known.drop(none)
    for proposed in (0.1, 0.9, 3.0):
        end, part = known.next(start, at(proposed), next(z))
        known.drop(used)
        parts.append(part)
        start = end
        assert end.tolist() == 2 * [{0.1: 0.1, 0.9: 0.4, 3.0: 1.0}[proposed]]
    torch.testing.assert_close(sum(parts), whole)
    assert known.depth.tolist() == [0, 0]


def test_increments_are_independent_whatever_was_rejected():
    """Rejections that depend on the size of the increment, as those of a tolerance do: the parts keep variance u and are
    uncorrelated, and the path W(1) is N(0, 1)."""
    count = 40000
    known, random = Increments(torch.zeros(count, 1, dtype=torch.float64)), torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(count, 1, generator=random, dtype=torch.float64)
    done, step = torch.zeros(count, dtype=torch.float64), torch.full((count,), 0.5, dtype=torch.float64)
    path, half = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for _ in range(200):
        target = torch.where(done < 0.5, 0.5, 1.0)  # no step crosses 0.5
        end, increment = known.next(done, torch.minimum(done + step, target), draw())
        increment = increment[:, 0]
        accepted = increment.abs() < 0.3
        path = torch.where(accepted, path + increment, path)
        half = torch.where(accepted & (end == 0.5), path, half)
        step = torch.where(accepted, 1.5 * (end - done), 0.4 * (end - done)).clamp(1e-6, 0.5)
        known.drop(accepted)
        known.trim(int(known.depth.max()))
        done = torch.where(accepted, end, done)
        if (done == 1).all():
            break
    assert (done == 1).all()
    first, second = half, path - half
    for part in (first, second):
        assert abs(part.mean().item()) < 4 * (0.5 / count) ** 0.5
        assert part.var().item() == pytest.approx(0.5, rel=4 * (2 / count) ** 0.5)
        assert (part**4).mean().item() == pytest.approx(3 * 0.25, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 4 / count**0.5


def test_noise_is_not_biased_by_rejections():
    """Without a score the error of a step is its noise alone, and the large increments are those that are rejected.

    The variance is that of the SDE all the same, where drawing anew leaves it far too small.
    """
    sde, count = SDE_CASES["ve"], 20000
    solver = AdaptiveSDE(rtol=1e-9, atol=0.5)
    x, noise = torch.zeros(count, 1, dtype=torch.float64), BatchNoise(0, (count, 1))
    x = solver.solve(NoScore(sde), x, sde.T, sde.t_min, noise=noise)
    expected = float(sde.sigma(sde.T) ** 2 - sde.sigma(sde.t_min) ** 2)
    assert x.var().item() == pytest.approx(expected, rel=4 * (2 / count) ** 0.5 + 0.005)


# steps


def test_one_step_is_the_mean_of_the_two_methods():
    """A tolerance that accepts all, over one step: Euler-Maruyama and the improved Euler method, written out."""
    sde = SDE_CASES["subvp"]
    score = mixture().score(sde)
    x, t, s = torch.randn(3, 2, dtype=torch.float64), 0.6, 0.6 - 1e-3
    first, rest = 0.01 * (t - s), 0.99 * (t - s)
    noise = SampleNoise(4, x.shape, dtype=torch.float64)
    again = SampleNoise(4, x.shape, dtype=torch.float64)
    found = []
    AdaptiveSDE(rtol=1e9, atol=1e9).solve(score, x, t, s, noise=noise, observe=lambda time, y: found.append((time, y)))
    length, end = first, t - first

    def rate(y, time):
        at = torch.full((3,), time, dtype=torch.float64)
        return float(sde.drift_coefficient(time)) * y - float(sde.diffusion(time)) ** 2 * score(y, at)

    increment = math.sqrt(length) * again.normal()
    low = x - length * rate(x, t) + float(sde.diffusion(t)) * increment
    high = x - length * (rate(x, t) + rate(low, end)) / 2 + float(sde.diffusion(t) + sde.diffusion(end)) / 2 * increment
    assert found[0][0] == pytest.approx(end)
    torch.testing.assert_close(found[0][1], high)
    lengths = [t - found[0][0], *(a[0] - b[0] for a, b in pairwise(found))]
    assert lengths[1] == pytest.approx(10 * first)
    assert sum(lengths) == pytest.approx(first + rest)


def test_step_lengths_follow_from_the_errors():
    """An accepted first step, and one that is rejected twice, written out.

    A shorter attempt has a part of the rejected increment, and a tolerance that knows nothing of the rejected state.
    """
    sde = SDE_CASES["vp"]
    score, kept = mixture((3,)).score(sde), []
    x = torch.tensor([[2.0, -0.01, 0.5]], dtype=torch.float64)
    t, s, first = 0.9, 0.4, 0.005
    noise = SampleNoise(4, x.shape, dtype=torch.float64)
    known, z = math.sqrt(first) * noise.normal(), noise.normal()

    def attempt(length, increment, rtol):
        def moved(y, time):
            drift = sde.reverse_drift(y, time, score(y, torch.full((1,), time, dtype=torch.float64)))
            return x - length * drift + sde.diffusion(time) * increment

        low = moved(x, t)
        high = (low + moved(low, t - length)) / 2
        tolerance = (rtol * torch.maximum(low.abs(), x.abs())).clamp_min(0.002)
        error = ((high - low) / tolerance).square().mean().sqrt().item()
        return error, 0.9 * error**-0.9 * length

    for rtol in (0.12, 0.005):
        kept.clear()
        noise = SampleNoise(4, x.shape, dtype=torch.float64)
        AdaptiveSDE(rtol=rtol, atol=0.002).solve(Kept(score, kept), x, t, s, noise=noise)
        error, second = attempt(first, known, rtol)
        if rtol == 0.12:
            assert error <= 1
            assert kept[2].item() == pytest.approx(t - first)
            assert (kept[2] - kept[3]).item() == pytest.approx(second)
        else:
            assert error > 1
            assert kept[2].item() == t
            assert (kept[2] - kept[3]).item() == pytest.approx(second)
            part = second / first * known + math.sqrt(second * (first - second) / first) * z
            error, third = attempt(second, part, rtol)
            assert error > 1
            assert kept[4].item() == t
            assert (kept[4] - kept[5]).item() == pytest.approx(third)


@dataclass(frozen=True, eq=False)
class Kept:
    """A score that keeps the times of all samples."""

    inner: object
    times: list

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        self.times.append(t.clone())
        return self.inner(x, t, cond)


def test_each_sample_has_steps_of_its_own(sde):
    kept = Kept(mixture().score(sde), [])
    drawn = AdaptiveSDE(rtol=0.05).sample(kept, (6, 2), dtype=torch.float64)
    times = torch.stack(kept.times)
    assert drawn.nfe == len(times)
    assert (times.std(1) > 0.01 * sde.T).any()
    assert times.min() >= sde.t_min
    assert times.max() <= sde.T


def test_a_sample_does_not_depend_on_its_batch(each_sde):
    """A hard neighbour, far from all data, is rejected more often; the others do not notice."""
    score, solver = mixture().score(each_sde), AdaptiveSDE(rtol=0.05)
    x = float(each_sde.sigma(each_sde.T)) * torch.randn(4, 2, dtype=torch.float64)
    x[3] *= 30
    together = solver.sample(score, x_T=x, seed=3)
    for i in range(4):
        alone = solver.sample(score, x_T=x[i : i + 1], seed=3, first=i)
        torch.testing.assert_close(alone.x, together.x[i : i + 1], rtol=1e-9, atol=1e-9)
        assert alone.nfe <= together.nfe


def test_a_smaller_tolerance_takes_more_steps():
    score = mixture().score(SDE_CASES["vp"])
    spent = [
        AdaptiveSDE(rtol=rtol, atol=rtol / 2).sample(score, (8, 2), dtype=torch.float64).nfe for rtol in (0.1, 0.02, 0.004)
    ]
    assert spent[0] < spent[1] < spent[2]


def test_giving_up_is_a_named_error(monkeypatch):
    score = mixture().score(SDE_CASES["vp"])
    monkeypatch.setattr(adaptive_sde, "MAX_STEPS", 5)
    with pytest.raises(SolverError, match=r"gave up at t = 0\.\d+ after 10 evaluations.*larger rtol"):
        AdaptiveSDE().sample(score, (2, 2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol and atol must be positive, got 0.0"),
        ({"atol": -1.0}, "rtol and atol must be positive"),
        ({"safety": 1.5}, "safety must lie between 0 and 1, got 1.5"),
        ({"exponent": 0.1}, "exponent must lie between 0.5 and 1, got 0.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(AdaptiveSDE(), **options)


def test_it_goes_from_noise_to_data_only():
    with pytest.raises(ValueError, match="from noise to data only"):
        AdaptiveSDE().solve(mixture().score(SDE_CASES["vp"]), torch.zeros(1, 2, dtype=torch.float64), 0.1, 0.9)


def test_a_fixed_step_method_stands_in_for_a_budget():
    assert AdaptiveSDE().with_budget(24) == StochasticHeun(steps=12)
