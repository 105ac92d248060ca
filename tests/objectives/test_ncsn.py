"""NCSN's levels and losses, and its Langevin dynamics, are those of the published code."""

import math

import pytest
import torch

from score_sde import VESDE, VPSDE, ScoreModel
from score_sde.data import Batch, DataSpec
from score_sde.draws import Draws
from score_sde.objectives import NCSN
from score_sde.score import BoundScore
from score_sde.sdes import FixedNoise
from score_sde.solvers import AnnealedLangevin
from tests.oracles import Given, ScaledScore, mixture
from tests.reference.ncsn import CASES, Published, answers


def model_of(name, **options):
    """The conditional network of a case: its output over sigma."""
    levels = CASES[name]["levels"]
    sde = VESDE(sigma_min=levels["sigma_min"], sigma_max=levels["sigma_max"])
    options = {"parameterization": "ncsn", "time_input": "reversed", "scale_input": False, **options}
    return ScoreModel(Published(name), sde, DataSpec(tuple(CASES[name]["shape"])), labels=levels["count"], **options)


@pytest.mark.parametrize("name", CASES)
def test_the_published_losses(name):
    """Theirs is half the sum over coordinates, times sigma to a power; with that of 2 it is D / 2 times ours."""
    given, model, dim = answers(name), model_of(name), CASES[name]["dim"]
    terms = NCSN().terms(model, given["dsm_samples"], given["dsm_labels"], given["dsm_noise"])
    sigma = model.sde.sigma(terms.times)
    torch.testing.assert_close(sigma, given["sigmas"][given["dsm_labels"]], rtol=1e-6, atol=0)
    for power in (0, 1, 2):
        found = terms.loss * dim / 2 * sigma ** (power - 2)
        torch.testing.assert_close(found, given[f"dsm_v2.power{power}.per_sample"], rtol=1e-6, atol=0)
    assert torch.equal(terms.parts["mse"], terms.loss)
    single = NCSN().terms(model.float(), given["dsm_samples"].float(), given["dsm_labels"], given["dsm_noise"].float())
    torch.testing.assert_close(single.loss, terms.loss.float(), rtol=1e-4, atol=1e-6)


def test_the_error_is_that_of_the_own_target():
    """The network's output is the score: its target is -epsilon / sigma."""
    given, model = answers("F1"), model_of("F1", parameterization="score")
    level, noise = given["dsm_labels"], given["dsm_noise"]
    terms = NCSN().terms(model, given["dsm_samples"], level, noise)
    sigma = model.sde.sigma(terms.times)[:, None, None, None]
    output = model.network(given["dsm_samples"] + sigma * noise, level)
    torch.testing.assert_close(terms.parts["mse"], (output + noise / sigma).square().mean((1, 2, 3)))


@pytest.mark.parametrize("name", CASES)
def test_the_published_langevin_dynamics(name):
    """Every state, of NCSNv2 by a step h = epsilon sigma^2 / sigma_L^2 and of NCSN by half of it, from the first level on."""
    given, model, case = answers(name), model_of(name), CASES[name]
    count, smallest, each = case["levels"]["count"], case["levels"]["sigma_min"], case["steps_at_each"]
    times = torch.linspace(1, 0, count, dtype=torch.float64)
    for toy in (False, True):
        x, noise = (given["toy_x"], given["toy_noise"]) if toy else (given["langevin_x"], given["langevin_noise"])
        x, noise = x.reshape(-1, *case["shape"]), iter(noise.reshape(-1, *x.shape[:1], *case["shape"]))
        snr = math.sqrt(case["toy_step"]) / 2 if toy else math.sqrt(case["step"] / 2)
        solver, states = AnnealedLangevin(corrections=1, snr=snr / smallest), []
        for t in times:
            for _ in range(each):
                with torch.no_grad():
                    x = solver.move(BoundScore(model), x, t, t, Given(next(noise)))
                states.append(x)
        if toy:
            torch.testing.assert_close(x.reshape(given["toy_x"].shape), given["langevin_toy.end"], rtol=1e-6, atol=1e-7)
            continue
        found, expected = torch.stack(states), given["langevin_v2.plain.iterates"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        denoised = x + smallest**2 * BoundScore(model)(x, times[-1])
        torch.testing.assert_close(denoised, given["langevin_v2.denoise.iterates"][-1], rtol=1e-6, atol=1e-6)


def test_all_levels_are_drawn_alike_and_the_minimizer_is_the_score():
    """Along multiples of the exact score the loss is least at 1; its 1000 levels run from T to 0."""
    sde = VESDE(sigma_min=0.05, sigma_max=5.0)
    score, batch = mixture(dtype=torch.float32).score(sde), Batch(mixture().sample(2000).float())
    terms = {factor: NCSN()(ScaledScore(score, factor), batch, Draws(0, 0, 2000), {}) for factor in (0.8, 1.0, 1.25)}
    losses = {factor: found.loss.mean() for factor, found in terms.items()}
    assert losses[1.0] < min(losses[0.8], losses[1.25])
    times = terms[1.0].times
    assert 0 <= times.min() < 0.005
    assert 0.995 < times.max() <= 1
    assert times.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 2000))


@pytest.mark.parametrize(
    ("sde", "message"),
    [(VPSDE(), "at t = 0, where VPSDE has no noise: take the SDE ve"), (FixedNoise(0.1), "all levels of noise")],
    ids=["vp", "fixed"],
)
def test_sdes_without_its_levels_are_refused(sde, message):
    with pytest.raises(ValueError, match=message):
        NCSN().check(mixture().score(sde))
