"""Tables of betas: shorter chains of their steps beside the published ones, times, and tables from a log-SNR."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

from score_sde import VESDE, VPSDE, CosineSDE, TabulatedSDE
from score_sde.sdes import ddpm_schedule
from score_sde.sdes.respacing import kept_steps
from score_sde.transitions import forward_transition
from tests.reference.respacing import chains


@pytest.mark.parametrize("published", chains(), ids=lambda chain: "-".join(map(str, chain[:3])))
def test_a_respaced_chain_is_the_published_one(published):
    original = ddpm_schedule(published.steps, schedule=published.schedule)
    sde = ddpm_schedule(published.steps, schedule=published.schedule, respacing=published.respacing)
    assert sde == original.respaced(published.respacing)
    nodes = sde.nodes()
    labels = nodes * published.steps / sde.T - 1
    np.testing.assert_allclose(labels.numpy(), published.kept, rtol=0, atol=1e-9)
    np.testing.assert_allclose(sde.betas, published.betas, rtol=1e-12, atol=0)
    np.testing.assert_allclose(sde.alpha(nodes).numpy() ** 2, published.alphas_cumprod, rtol=1e-12, atol=1e-18)
    _, betas = forward_transition(sde, sde.earlier(nodes[1:]), nodes[1:])  # of a step along its nodes
    np.testing.assert_allclose(betas.numpy(), published.betas[1:], rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [7, 100, 1000])
@pytest.mark.parametrize("respacing", ["2", "5", "7", "1,3", "2,1,1", "2,0,1"])
def test_steps_are_kept_evenly_in_each_part(steps, respacing):
    """As exact fractions, but for positions that end in 1/2."""
    counts = [int(count) for count in respacing.split(",")]
    lengths = [steps // len(counts) + (part < steps % len(counts)) for part in range(len(counts))]
    starts = [sum(lengths[:part]) for part in range(len(counts))]
    exact = [
        start + (Fraction(length - 1, count - 1) * k if count > 1 else Fraction(0))
        for start, length, count in zip(starts, lengths, counts, strict=True)
        for k in range(count)
    ]
    kept = kept_steps(steps, respacing)
    assert len(kept) == sum(counts)
    assert all(abs(step - position) <= Fraction(1, 2) for step, position in zip(kept, exact, strict=True))


@pytest.mark.parametrize(("steps", "count", "middle", "step"), [(16, 15, 7, 7), (500, 21, 10, 249), (500, 25, 12, 249)])
def test_a_position_that_ends_in_one_half_falls_as_in_the_published_code(steps, count, middle, step):
    """It sums up positions in float64. These come out just below their half, which alone would go up to the even number."""
    assert (steps - 1) * middle / (count - 1) == step + 0.5
    assert kept_steps(steps, str(count))[middle] == step


@pytest.mark.parametrize("count", [2, 7, 50])
def test_ddim_keeps_every_mth_step_from_the_first(count):
    kept = kept_steps(1000, f"ddim{count}")
    stride = kept[1]
    assert kept == tuple(range(0, 1000, stride))
    assert len(kept) == count
    assert len(range(0, 1000, stride - 1)) > count


@pytest.mark.parametrize("respacing", ["25", "ddim10", "10,10"])
def test_between_the_kept_times_and_after_the_last_the_noise_is_that_of_the_original(respacing):
    """There a network meets labels that it was trained on."""
    original = ddpm_schedule(100)
    sde, t = original.respaced(respacing), torch.linspace(1e-5, 1, 501, dtype=torch.float64)
    assert torch.equal(sde.log_snr(t), original.log_snr(t))
    assert torch.equal(sde.diffusion(t), original.diffusion(t))
    assert (sde.T, sde.t_min) == (original.T, original.t_min)


def test_respacing_twice_is_respacing_once():
    once, twice = ddpm_schedule(1000).respaced("ddim20"), ddpm_schedule(1000).respaced("ddim100").respaced("ddim20")
    assert once.times == twice.times
    assert once.original == twice.original
    np.testing.assert_allclose(once.betas, twice.betas, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("respacing", ["", "25", "10,10", "ddim50"])
def test_earlier_is_the_node_below(respacing, dtype):
    sde = ddpm_schedule(1000, respacing=respacing)
    nodes = sde.nodes()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), nodes[:-1]])
    found = sde.earlier(nodes.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), below, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    between = sde.earlier(torch.linspace(0, 1, 5001, dtype=dtype))
    assert (between.diff() >= -1e-12).all()
    assert (between >= 0).all()
    assert sde.earlier(nodes[3].to(dtype)).shape == ()


def test_a_table_has_times_of_its_own():
    sde = TabulatedSDE(betas=(0.01, 0.2, 0.5), times=(0.1, 0.7, 2.0), T=2.0)
    np.testing.assert_allclose(sde.alpha(sde.nodes()).numpy() ** 2, np.cumprod([0.99, 0.8, 0.5]), rtol=1e-12)
    assert sde.nodes().tolist() == [0.1, 0.7, 2.0]


@pytest.mark.parametrize("sde", [VPSDE(), CosineSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_a_table_from_a_log_snr_has_it_at_its_nodes(sde):
    table = TabulatedSDE.from_log_snr(sde.log_snr, 50, T=sde.T)
    torch.testing.assert_close(table.log_snr(table.nodes()), sde.log_snr(table.nodes()), rtol=0, atol=1e-9)
    assert len(table.betas) == 50


def test_the_cosine_table_is_that_of_the_cosine_schedule():
    """But for its last step, whose beta is cut; the continuous schedule ends there."""
    T = 0.96
    table = TabulatedSDE.from_log_snr(CosineSDE(T=T).log_snr, 960, T=T)
    np.testing.assert_allclose(table.betas, ddpm_schedule(1000, schedule="cosine").betas[:960], rtol=1e-11)


CHAIN = ddpm_schedule(20, beta_end=0.3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CHAIN.respaced("1"), "two or more steps, and respacing '1' keeps 1"),
        (lambda: CHAIN.respaced("ddim1"), "two or more steps"),
        (lambda: CHAIN.respaced("21"), "keeps 21 of a part that has 20 steps"),
        (lambda: CHAIN.respaced("5,11"), "'5,11' keeps 11 of a part that has 10 steps"),
        (lambda: CHAIN.respaced(",".join(["1"] * 21)), "keeps 1 of a part that has 0 steps"),
        (lambda: CHAIN.respaced("ddim11"), "no stride takes exactly 11 of 20 steps"),
        (lambda: CHAIN.respaced("ddim21"), "no stride takes exactly 21 of 20"),
        (lambda: CHAIN.respaced("ddim5,5"), "respacing is a number of steps"),
        (lambda: CHAIN.respaced("few"), "respacing is a number of steps, several for equal parts .* got 'few'"),
        (lambda: CHAIN.respaced("10,-2"), "respacing is a number of steps"),
        (lambda: CHAIN.respaced(""), "respacing is a number of steps"),
        (lambda: TabulatedSDE(betas=(0.1, 0.2), times=(0.3, 1.0)).respaced("2"), "times of its own cannot be respaced"),
        (lambda: TabulatedSDE(betas=(0.1, 0.2), times=(1.0,)), "a time for each of 2 betas, got 1"),
        (lambda: TabulatedSDE(betas=(0.1, 0.2), times=(0.5, 0.4)), "times must rise"),
        (lambda: TabulatedSDE(betas=(0.1, 0.2), times=(0.5, 1.1)), "at most T = 1"),
        (lambda: TabulatedSDE(betas=(0.1, 0.2), times=(0.5, 0.9)), "the last of the times must be T = 1, got 0.9"),
        (lambda: dataclasses.replace(CHAIN.respaced("5"), betas=CHAIN.betas[:5]), "not those between times of the original"),
        (lambda: TabulatedSDE.from_log_snr(lambda t: 3 + t, 10), "the log-SNR must be finite and fall"),
        (lambda: TabulatedSDE.from_log_snr(lambda t: t.log(), 10), "must be finite and fall"),
        (lambda: ddpm_schedule(20, 0.005, 1.0), "below 1"),
    ],
)
def test_what_is_no_chain_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
