"""Latents by the ODE, and what lies between them."""

import math

import pytest
import torch

from score_sde import Ancestral, GaussianMixture, GaussianReference, ProbabilityFlow, UniPC, decode, encode, interpolate
from score_sde.solvers.latent import spherical
from tests.oracles import SDE_CASES, mixture


@pytest.mark.parametrize(
    "solver", [ProbabilityFlow(method="rk45", rtol=1e-7, atol=1e-7), UniPC(steps=400), GaussianReference(steps=400)]
)
@pytest.mark.covering(1)
def test_decoding_takes_encoding_back(solver, sde):
    x = mixture((2, 2)).sample(4, seed=1)
    score = mixture((2, 2)).score(sde)
    latent = encode(score, x, solver)
    torch.testing.assert_close(decode(score, latent, solver), x, rtol=0, atol=5e-4)
    assert not torch.allclose(latent, x, atol=0.1)


def test_the_latent_of_a_gaussian_is_its_whitened_data():
    """N(0, l): x_T = x sqrt((alpha_T^2 l + sigma_T^2) / (alpha_0^2 l + sigma_0^2)), coordinate by coordinate."""
    sde, variance = SDE_CASES["subvp"], torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    score = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), variance).score(sde)
    x = torch.randn(5, 2, dtype=torch.float64)
    spread = lambda t: (sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2).sqrt()
    torch.testing.assert_close(encode(score, x), x * spread(sde.T) / spread(sde.t_min), rtol=1e-3, atol=1e-4)


def test_interpolation_begins_and_ends_at_the_data():
    score = mixture((3,)).score(SDE_CASES["vp"])
    start, end = mixture((3,)).sample(2, seed=0), mixture((3,)).sample(2, seed=5)
    path = interpolate(score, start, end, [0.0, 0.5, 1.0])
    assert path.shape == (3, 2, 3)
    torch.testing.assert_close(path[0], start, rtol=0, atol=1e-3)
    torch.testing.assert_close(path[2], end, rtol=0, atol=1e-3)


def test_the_arc_keeps_its_length_and_its_angles():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    third = spherical(a, b, 1 / 3)
    torch.testing.assert_close(third[0], 2 * torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    torch.testing.assert_close(third[1], torch.tensor([4 / 3, 4 / 3]))  # parallel: the line


def test_what_cannot_be_inverted_is_refused():
    score = mixture().score(SDE_CASES["vp"])
    x = torch.zeros(1, 2, dtype=torch.float64)
    for call in (encode, decode):
        with pytest.raises(ValueError, match="need a deterministic solver, and Ancestral is stochastic"):
            call(score, x, Ancestral(steps=5))
    with pytest.raises(ValueError, match="two batches of one shape"):
        interpolate(score, x, x[:, :1], [0.5])
