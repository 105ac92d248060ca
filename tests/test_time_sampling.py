"""Rules for times: each estimates the average over uniform t, by quadrature over its uniform numbers."""

import pytest
import torch
from scipy.stats import truncnorm

from score_sde.tensors import generator
from score_sde.time_sampling import TIMES, AdaptiveTimes, LogitNormalTimes, LogNormalTimes, UniformTimes
from tests.oracles import SDE_CASES


def learned(rule, sde):
    """What a rule knows when the loss at t was t^2 + 0.1 of its largest value, at several times of each bin."""
    state = rule.begin(sde)
    for shift in range(3 if state else 0):
        u = (torch.arange(512, dtype=torch.float64) + shift / 3) / 512
        t, weight = rule.warp(sde, u, state)
        state = rule.learn(state, t, weight * ((t / sde.T) ** 2 + 0.1))
    return state


def average(rule, sde, h, state):
    """The mean of weight h(t) over u uniform in [0, 1), by the trapezoidal rule after u = sigmoid(y) in each smooth part."""
    ends = torch.cat([torch.zeros(1), rule.probabilities(state).cumsum(0)]) if state else torch.tensor([0.0, 1.0])
    y = torch.linspace(-80, 34, 701 if state else 7001, dtype=torch.float64)  # times near 0 belong to tiny u
    total = 0
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        t, weight = rule.warp(sde, start + (end - start) * y.sigmoid(), state)
        total += (end - start) * torch.trapezoid(weight * h(t) * y.sigmoid() * (-y).sigmoid(), y).item()
    return total


@pytest.mark.parametrize("name", TIMES)
def test_weights_make_every_rule_estimate_the_same_average(name, each_sde):
    """Of a smooth h whose average over t uniform in [t_min, T] is known: by quadrature over the log-SNR."""
    sde = each_sde
    h = lambda t: torch.exp(-((sde.log_snr(t) - 1) ** 2) / 8) * (1 - t / sde.T) ** 4
    log_snr = torch.linspace(float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min)), 4001, dtype=torch.float64)
    t = sde.inverse_log_snr(log_snr)
    expected = torch.trapezoid(h(t) * (sde.sigma(t) / sde.diffusion(t)) ** 2, log_snr).item() / (sde.T - sde.t_min)
    rule = TIMES[name]()
    assert average(rule, sde, h, learned(rule, sde)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TIMES)
def test_the_weight_is_the_slope_of_the_warp(name, each_sde):
    """The density is one over it, and its integral over [t_min, T] 1, as the warp goes from one end to the other."""
    sde = each_sde
    rule = TIMES[name]()
    state, u, step = learned(rule, sde), torch.linspace(1e-6, 1 - 1e-6, 301, dtype=torch.float64), 1e-9
    slope = (rule.warp(sde, u + step, state)[0] - rule.warp(sde, u - step, state)[0]) / (2 * step)
    torch.testing.assert_close(rule.warp(sde, u, state)[1], slope.abs() / (sde.T - sde.t_min), rtol=5e-5, atol=0)
    assert (slope > 0).all() or (slope < 0).all()
    ends = rule.warp(sde, torch.tensor([0.0, 1 - 1e-15], dtype=torch.float64), state)[0].sort().values
    assert ends[0].item() == pytest.approx(sde.t_min, rel=1e-6)
    assert ends[1].item() == pytest.approx(sde.T, rel=1e-3)  # log(t / (T - t)) has a finite quantile there


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TIMES)
def test_times_are_within_the_interval_in_every_dtype(name, each_sde, dtype):
    sde, rule = each_sde, TIMES[name]()
    t, weight = rule.warp(sde, torch.linspace(0, 1, 1001, dtype=dtype)[:-1], learned(rule, sde))
    assert t.dtype == weight.dtype == dtype
    assert t.min() >= sde.t_min * (1 - 1e-5)
    assert t.max() <= sde.T * (1 + 1e-6)
    assert (weight.isfinite() & (weight > 0)).all()


def test_log_snr_times_are_uniform_in_log_snr(sde):
    t, _ = TIMES["log_snr"]().sample(sde, 1000, generator(0))
    low, high = float(sde.log_snr(sde.T)), float(sde.log_snr(sde.t_min))
    u = (sde.log_snr(t.double()) - low) / (high - low)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert (u.sort().values - grid).abs().max() < 3e-3


@pytest.mark.parametrize("name", [*TIMES])
def test_stratified_times_cover_the_distribution_evenly(name):
    """Of 64 that are stratified one is in each 64th of the rule's distribution; others leave gaps."""
    sde, rule = SDE_CASES["vp"], TIMES[name]()
    places, _ = rule.warp(sde, torch.arange(1, 64, dtype=torch.float64) / 64, rule.begin(sde))
    bins = torch.searchsorted(places.sort().values, rule.sample(sde, 64, generator(0))[0].double()).bincount(minlength=64)
    assert bins.max() == (1 if rule.stratified else 4)


def test_each_stratified_time_is_uniform_over_seeds():
    first = torch.stack([TIMES["stratified"]().sample(SDE_CASES["vp"], 8, generator(i))[0][0] for i in range(2000)])
    assert abs(first.mean() - 0.5) < 4 / (12 * 2000) ** 0.5


def test_importance_sampling_gives_the_likelihood_loss_a_constant_weight(sde):
    t, weight = TIMES["log_snr"]().sample(sde, 256, generator(0))
    total = weight * (sde.diffusion(t) / sde.sigma(t)) ** 2
    span = float(sde.log_snr(sde.t_min) - sde.log_snr(sde.T)) / (sde.T - sde.t_min)
    torch.testing.assert_close(total, torch.full_like(total, span), rtol=1e-4, atol=0)


# normal


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 3.0), (2.0, 0.3)])
def test_normal_times_are_those_of_a_truncated_normal(mean, std, sde):
    u = torch.linspace(1e-6, 1 - 1e-6, 101, dtype=torch.float64)
    ends = [sde.noise_level(torch.tensor(t, dtype=torch.float64)).log().item() for t in (sde.t_min, sde.T)]
    quantiles = lambda *ends: torch.from_numpy(truncnorm.ppf(u, *((end - mean) / std for end in ends), loc=mean, scale=std))
    t, weight = LogNormalTimes(mean, std, weighted=False).warp(sde, u, {})
    torch.testing.assert_close(sde.noise_level(t).log(), quantiles(*ends), rtol=1e-6, atol=1e-6)
    assert (weight == 1).all()
    t, weight = LogitNormalTimes(mean, std, weighted=False).warp(sde, u, {})
    expected = quantiles(torch.tensor(sde.t_min / sde.T, dtype=torch.float64).logit().item(), float("inf"))
    torch.testing.assert_close(t / sde.T, expected.sigmoid(), rtol=1e-6, atol=0)
    assert (weight == 1).all()


@pytest.mark.parametrize("kind", [LogNormalTimes, LogitNormalTimes])
def test_normal_times_that_cannot_be_are_refused(kind):
    for options, message in (
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"mean": float("nan")}, "mean must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**options)
    with pytest.raises(ValueError, match=r"mean -40 and std 1 leave a share of .* choose a mean between them"):
        kind(mean=-40.0, std=1.0).sample(SDE_CASES["vp"], 4, generator(0))


# adaptive


def shares(rule, sde, loss):
    """The shares of log-SNR bins in proportion to the root mean square of a loss per unit of log-SNR, by a fine sum."""
    log_snr = torch.linspace(float(sde.log_snr(sde.t_min)), float(sde.log_snr(sde.T)), rule.bins * 200 + 1, dtype=torch.float64)
    t = sde.inverse_log_snr((log_snr[1:] + log_snr[:-1]) / 2)
    x = loss(t) * (sde.sigma(t) / sde.diffusion(t)) ** 2
    root = x.square().reshape(rule.bins, 200).mean(1).sqrt()
    return root / root.sum()


def test_adaptive_times_follow_the_root_mean_square_of_the_loss(each_sde):
    """Up to the least probability and what a bin takes from its neighbours."""
    sde, rule, loss = each_sde, AdaptiveTimes(history=10**6), lambda t: (t / each_sde.T) ** 2 + 0.1
    state = rule.begin(sde)
    torch.testing.assert_close(rule.probabilities(state), torch.full((64,), 1 / 64, dtype=torch.float64))
    for shift in range(10):
        t, weight = rule.warp(sde, (torch.arange(4000, dtype=torch.float64) + shift / 10) / 4000, state)
        state = rule.learn(state, t, weight * loss(t))
    expected = 0.95 * shares(rule, sde, loss) + 0.05 / 64
    torch.testing.assert_close(rule.probabilities(state), expected, rtol=0.15, atol=0)
    estimates = weight * loss(t)
    before = UniformTimes().warp(sde, torch.rand(4000, dtype=torch.float64), {})[0]
    assert estimates.std() < 0.25 * loss(before).std()


def test_what_is_learned_does_not_depend_on_the_order_of_samples():
    rule, sde = AdaptiveTimes(), SDE_CASES["vp"]
    t, weight = rule.sample(sde, 500, generator(0))
    loss, order = weight * torch.rand(500), torch.randperm(500)
    torch.testing.assert_close(rule.learn(rule.begin(sde), t, loss), rule.learn(rule.begin(sde), t[order], loss[order]))


def test_a_bin_without_samples_takes_after_its_neighbours():
    rule, sde = AdaptiveTimes(bins=16), SDE_CASES["vp"]
    u = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    t, _ = rule.warp(sde, u, rule.begin(sde))
    loss = 2.0 ** torch.arange(16)
    seen = torch.tensor([0, 1, 2, 3, 4, 6, 9, 10, 11, 12, 13, 14, 15])
    p = rule.probabilities(rule.learn(rule.begin(sde), t[seen], loss[seen]))
    assert (p.diff() > 0).all()
    assert p.min() >= 0.05 / 16


def test_old_losses_are_forgotten():
    """Per unit of log-SNR the loss is twice as large at late times as at early ones, and then half as large."""
    rule, sde = AdaptiveTimes(history=50), SDE_CASES["vp"]
    state = rule.begin(sde)
    for early, late in ((1, 2), (2, 1)):
        for i in range(100):
            t, weight = rule.sample(sde, 256, generator(i), state)
            loss = torch.where(t > 0.1, late, early) * (sde.diffusion(t) / sde.sigma(t)) ** 2
            state = rule.learn(state, t, weight * loss)
        p = rule.probabilities(state)
        assert ((p[-1] - 0.05 / 64) / (p[0] - 0.05 / 64)).item() == pytest.approx(late / early, rel=0.02)
        assert state["counts"].max() == 50


def test_a_loss_that_is_zero_leaves_finite_weights():
    rule, sde = AdaptiveTimes(), SDE_CASES["ve"]
    t, weight = rule.sample(sde, 256, generator(0))
    state = rule.learn(rule.begin(sde), t, 0 * weight)
    torch.testing.assert_close(rule.sample(sde, 256, generator(0), state), (t, weight))


@pytest.mark.parametrize("options", [{"bins": 0}, {"history": 0}, {"floor": 0.0}, {"floor": 1.5}])
def test_adaptive_times_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdaptiveTimes(**options)
