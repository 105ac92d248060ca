"""Score matching at one level of noise: implicit, sliced and denoising find the same score, and say what they cannot take."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from score_sde import VPSDE, EulerMaruyama, ScoreModel, TrainingOptions, bits_per_dim, fit, load
from score_sde.data import Batch, DataSpec
from score_sde.divergence import Hutchinson
from score_sde.draws import Draws
from score_sde.networks import MLP, NETWORKS, NCSNv2, UNet
from score_sde.objectives import (
    DenoisingAtSigma,
    DenoisingScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
)
from score_sde.sdes import FixedNoise
from score_sde.solvers import DDIM, LangevinDynamics
from tests.networks.test_networks import SMALL
from tests.oracles import ScaledScore, gaussian, mixture
from tests.reference.ncsn import CASES, Published, answers

SLICED = [
    SlicedScoreMatching(vectors, distribution, reduced)
    for vectors, distribution, reduced in (
        (1, "rademacher", True),
        (2, "rademacher", False),
        (1, "gaussian", True),
        (2, "gaussian", False),
        (1, "orthogonal", True),
        (2, "orthogonal", False),
    )
]
WITHOUT_TRACE = [ImplicitScoreMatching(), *SLICED]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def unit(vectors):
    """Scaled to length 1, as the published code does in the form that is not reduced."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("name", CASES)
def test_the_published_losses(name):
    """They are sums over coordinates, and where vectors have unit length their loss is ours already."""
    dim, given = CASES[name]["dim"], answers(name)
    options = {"parameterization": "score", "time_input": "none", "scale_input": False}
    model, x = ScoreModel(Published(name), FixedNoise(), DataSpec((dim,)), **options), given["points"]
    exact = ImplicitScoreMatching().terms(model, x)
    close(exact.loss * dim, given["ism_per_sample"])
    close(exact.parts["trace"] * dim, given["ism_trace"])
    close(exact.parts["square"] * dim, given["ism_half_square"])
    for kind in ("raw", "rademacher"):
        for count in (1, CASES[name]["vectors"]):
            vectors = given[f"vectors_{kind}"][:count]
            for answer, objective, taken in (
                ("ssm_vr", SlicedScoreMatching(), vectors),
                ("ssm", SlicedScoreMatching(reduced=False), unit(vectors)),
            ):
                terms = objective.terms(model, x, taken if count > 1 else taken[0])
                found = torch.stack([terms.loss, terms.parts["square"], terms.parts["trace"]], 1) * dim
                close(found, given[f"{answer}.{kind}.particles{count}.per_sample"])
    model = ScoreModel(Published(name), FixedNoise(0.3), DataSpec(tuple(CASES[name]["shape"])), **options)
    loss = DenoisingAtSigma().terms(model, given["dsm_samples"], given["dsm_noise"]).loss
    close(loss.mean() * dim / 2 / 0.3**2, given["dsm_single_level.sigma0.3.mean"])


@pytest.mark.parametrize("name", CASES)
def test_the_published_annealed_sliced_loss(name):
    """The reduced form at perturbed points, by a function of x alone, weighted by sigma^2 outside."""
    dim, given, network = CASES[name]["dim"], answers(name), Published(name)
    sigma = given["sigmas"][given["assm_labels"]]
    x = given["assm_samples"] + sigma[:, None] * given["assm_noise"]
    for count in (1, CASES[name]["vectors"]):
        vectors = given["assm_vectors"][: count * len(x)].reshape(count, *x.shape)
        loss = SlicedScoreMatching().terms(lambda x: network(x, sigma) / sigma[:, None], x, vectors).loss
        close((loss * dim * sigma**2).mean(), given[f"anneal_ssm_vr.particles{count}.mean"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1, 2), (1, 2, 1, 2)], ids=str)
def test_the_trace_is_that_of_the_jacobian(shape, dtype):
    """Of every rank; and a whole orthonormal basis of vectors, times sqrt(D), gives the exact loss."""
    score, x = mixture(shape, dtype).score(FixedNoise(0.2)), torch.randn(4, *shape, dtype=dtype)
    dim, exact = math.prod(shape), ImplicitScoreMatching().terms(score, x)
    jacobian = torch.autograd.functional.jacobian(lambda x: score(x, torch.ones(4, dtype=dtype)).sum(0), x)
    trace = torch.stack([jacobian.movedim(len(shape), 0)[i].reshape(dim, dim).trace() for i in range(4)])
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(exact.parts["trace"], trace / dim, **tolerance)
    for reduced in (True, False):
        basis = Hutchinson(dim, "orthogonal").from_normal(torch.randn(dim, *x.shape, dtype=dtype))
        terms = SlicedScoreMatching(reduced=reduced).terms(score, x, basis)
        assert terms.loss.dtype == dtype
        torch.testing.assert_close(terms.loss, exact.loss, **tolerance)


@pytest.mark.parametrize("objective", WITHOUT_TRACE, ids=str)
def test_the_gradient_vanishes_at_the_exact_score_alone(objective):
    """Along multiples c of the score of Gaussian data: the derivative in c is 0 at c = 1 within 4 standard errors, and of the
    right sign, by far more, on either side. The losses are quadratic in c, so that differences are derivatives."""
    exact = gaussian(0.7, 0.3).score(FixedNoise(0.2))
    batch = Batch(gaussian(0.7, 0.3).sample(2000, seed=1))
    if getattr(objective, "distribution", "") == "orthogonal" and objective.vectors > 1:
        exact, batch = mixture(components=1).score(FixedNoise(0.2)), Batch(mixture(components=1).sample(2000, seed=1))

    def slope(factor):
        high, low = (objective(ScaledScore(exact, factor + h), batch, Draws(0, 0, 2000), {}).loss for h in (0.5, -0.5))
        each = high - low
        return (each.mean() / (each.std() / 2000**0.5)).item()

    assert abs(slope(1.0)) < 4
    assert slope(0.5) < -6
    assert slope(1.5) > 6


def test_implicit_and_half_the_denoising_loss_have_the_same_gradient():
    """Vincent 2011: on the same samples with the same noise, for a network far from the score, within 4 standard errors."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    options = {"parameterization": "score", "time_input": "none"}
    sigma, count = 0.4, 500
    model = ScoreModel(_Untold(network), FixedNoise(sigma), DataSpec((2,)), **options)
    parameters, gaps = list(network.parameters()), []
    for step in range(16):
        draws, batch = Draws(0, step, count), Batch(mixture().sample(count, seed=step))
        implicit = ImplicitScoreMatching()(model, batch, draws, {}).loss.mean()
        denoising = DenoisingAtSigma()(model, batch, draws, {}).loss.mean() / (2 * sigma**2)
        gradients = (torch.autograd.grad(loss, parameters) for loss in (implicit, denoising))
        gaps.append(torch.cat([(a - b).flatten() for a, b in zip(*gradients, strict=True)]))
    gap = torch.stack(gaps)
    assert (gap.mean(0).abs() < 4 * gap.std(0) / 4 + 1e-12).all()
    assert gap.std() > 1e-4  # they are different estimates


class _Untold(nn.Module):
    """A network that is not told the noise level."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, noise):
        return self.inner(x)


@pytest.mark.parametrize(
    ("objective", "sde", "message"),
    [
        (ImplicitScoreMatching(), VPSDE(), "ImplicitScoreMatching learns the score of one density.*take the SDE fixed"),
        (SlicedScoreMatching(), VPSDE(), "SlicedScoreMatching learns the score of one density"),
        (DenoisingAtSigma(), VPSDE(), "DenoisingAtSigma learns the score of one density"),
        (DenoisingScoreMatching(), FixedNoise(), "all levels of noise, and the SDE fixed has one: take the objective implicit"),
        (DenoisingAtSigma(), FixedNoise(), "denoising needs noise: set the noise of the SDE fixed"),
    ],
    ids=str,
)
def test_an_objective_and_an_sde_that_do_not_fit(objective, sde, message):
    with pytest.raises(ValueError, match=message):
        objective.check(mixture().score(sde))


@dataclass(frozen=True, eq=False)
class Described:
    """A score that knows its data."""

    data: DataSpec
    sde: FixedNoise

    def __call__(self, x, t, cond=None):
        return -x


@pytest.mark.parametrize("objective", WITHOUT_TRACE[:2], ids=str)
def test_integers_without_noise_are_refused(objective):
    integers = DataSpec((2,), levels=16, dequantize=False)
    with pytest.raises(ValueError, match="of integers has no lower bound: dequantize the data, set the noise"):
        objective.check(Described(integers, FixedNoise()))
    objective.check(Described(integers, FixedNoise(0.1)))
    objective.check(Described(DataSpec((2,), levels=16), FixedNoise()))


@pytest.mark.parametrize(
    ("network", "layer"),
    [(_Untold(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))), "ReLU"), (NCSNv2((1, 8, 8), width=4), "MaxPool2d")],
    ids=["relu", "maximum"],
)
def test_a_network_with_kinks_is_refused(network, layer):
    shape = getattr(network, "event", None) or (2,)
    model = ScoreModel(network, FixedNoise(0.1), DataSpec(shape), parameterization="score", time_input="none")
    with pytest.raises(ValueError, match=f"whose derivative is continuous, and that of .* a {layer}, jumps"):
        SlicedScoreMatching().check(model)
    DenoisingAtSigma().check(model)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_has_a_second_derivative_or_is_refused(name):
    """The derivative in the weights is the difference of losses, in float64 and through attention of either kind."""
    shape, objective = (1, 8, 8), SlicedScoreMatching()
    network = NETWORKS[name](shape, **SMALL[name]).double().eval()
    model = ScoreModel(network, FixedNoise(0.1), DataSpec(shape), parameterization="score", time_input="none")
    if name == "ncsnv2":  # with its maxima
        with pytest.raises(ValueError, match="whose derivative is continuous"):
            objective.check(model)
        return
    objective.check(model)
    weights = list(network.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn_like(weight))
    batch, directions = Batch(torch.randn(2, *shape, dtype=torch.float64)), [torch.randn_like(weight) for weight in weights]
    loss = lambda: objective(model, batch, Draws(0, 0, 2), {}).loss.mean()
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
    slope = sum((gradient * direction).sum().item() for gradient, direction in zip(gradients, directions, strict=True))
    ends = []
    with torch.no_grad():
        for h in (1e-5, -1e-5):
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(h * direction)
            ends.append(loss().item())
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(h * direction)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_recomputed_activations_are_refused():
    network = UNet((1, 4), width=8, multipliers=(1,), attention=(0,), recompute=True)
    model = ScoreModel(network, FixedNoise(0.1), DataSpec((1, 4)), time_input="none")
    with pytest.raises(ValueError, match="set the network's recompute to False"):
        SlicedScoreMatching().check(model)


def test_what_autograd_misses_of_a_relu():
    """Why: the mean trace of relu(x + b) is P(x > -b), whose derivative in b is a density and not 0."""
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = torch.randn(2000, 1, dtype=torch.float64)
    trace = lambda function: ImplicitScoreMatching().terms(function, x).parts["trace"].mean()
    (lost,) = torch.autograd.grad(trace(lambda x: torch.relu(x + b)) + 0 * b, b)
    assert lost == 0
    higher, lower = (trace(lambda x, h=h: torch.relu(x + h)).item() for h in (0.2, -0.2))
    assert (higher - lower) / 0.4 == pytest.approx(1 / math.sqrt(2 * math.pi), abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set its time_input to none, and its parameterization to score"),
        ({"parameterization": "score"}, "set its time_input to none"),
        ({"time_input": "none"}, "its parameterization to score"),
    ],
)
def test_a_model_of_one_density_is_told_no_time(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(Published("F2"), FixedNoise(), DataSpec((3,)), **options)
    ScoreModel(Published("F2"), FixedNoise(0.1), DataSpec((3,)), parameterization="edm", time_input="none")


SHORT = {"batch_size": 16, "sample_every": 4, "checkpoint_every": 2, "log_every": 2}
HOW = {
    "sde": FixedNoise(0.1),
    "parameterization": "score",
    "time_input": "none",
    "network_options": {"width": 8},
    "progress": False,
}


def test_a_run_is_sampled_by_langevin_dynamics_alone(tmp_path):
    data, training = mixture().sample(60).float(), TrainingOptions(steps=4, **SHORT)
    fit(data, tmp_path / "run", objective=SlicedScoreMatching(), training=training, **HOW)
    run = load(tmp_path / "run")
    assert run.model.sde == FixedNoise(0.1)
    assert LangevinDynamics(steps=3).sample(run.model, (4, 2)).x.isfinite().all()
    for refused in (
        lambda: DDIM().sample(run.model, (4, 2)),
        lambda: EulerMaruyama().solve(run.model, torch.zeros(4, 2), 1.0, 0.5),
        lambda: bits_per_dim(run.model, data[:4]),
    ):
        with pytest.raises(ValueError, match="of the solvers langevin alone takes it"):
            refused()


@pytest.mark.parametrize("objective", [ImplicitScoreMatching(), SlicedScoreMatching()], ids=str)
def test_what_has_no_second_derivative_is_refused(objective, tmp_path):
    compiled = TrainingOptions(steps=2, compile=True, **SHORT)
    with pytest.raises(ValueError, match="compile makes has no second derivatives"):
        fit(mixture().sample(60).float(), tmp_path / "run", objective=objective, training=compiled, **HOW)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [ImplicitScoreMatching(), SlicedScoreMatching(), DenoisingAtSigma()], ids=str)
def test_a_network_learns_the_score_of_a_mixture(objective):
    """E || s - score ||^2 / 2, a mean over coordinates, falls below 0.05; for s = 0 it is above 0.5."""
    truth, sde = mixture(), FixedNoise(0.2)
    network = MLP((2,), width=64, depth=2)
    model = ScoreModel(network, sde, DataSpec((2,)), parameterization="score", time_input="none")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    values, random = truth.sample(20000).float(), torch.Generator().manual_seed(0)
    for step in range(800):
        batch = Batch(values[torch.randint(20000, (512,), generator=random)])
        optimizer.zero_grad()
        objective(model, batch, Draws(0, step, 512), {}).loss.mean().backward()
        optimizer.step()
        schedule.step()
    x = sde.perturb(truth.sample(4000, seed=9999), 1.0, torch.randn(4000, 2, dtype=torch.float64))
    t = torch.ones(4000, dtype=torch.float64)
    exact = truth.score(sde)(x, t)
    with torch.no_grad():
        found = model(x.float(), t.float())
    assert (found - exact).square().mean() / 2 < 0.05
    assert exact.square().mean() / 2 > 0.5
