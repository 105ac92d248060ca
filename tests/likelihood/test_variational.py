"""Variational dequantization against Jacobians, quadrature, and mixtures whose bins have a known mass."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch

from score_sde import VESDE, VPSDE, DataSpec, GaussianMixture, ScoreModel, SubVPSDE
from score_sde.data import DataError, TensorSource
from score_sde.likelihood import DualWeighted
from score_sde.likelihood.dequantization import uniform
from score_sde.likelihood.variational import VariationalDequantizer, bound, fit_dequantizer
from score_sde.networks import MLP
from score_sde.solvers.base import SolverError
from score_sde.tensors import SampleNoise
from tests.oracles import BrokenScore, Recorder, mixture

EVENTS = [(3,), (2, 3), (1, 2, 4), (1, 2, 2, 2)]
DTYPES = [torch.float32, torch.float64]


def randomized(spec, *, dtype=torch.float32, scale=1.0, **sizes):
    """A dequantizer whose every weight is at random: none of its couplings is the identity."""
    flow = VariationalDequantizer(spec, **sizes).to(dtype).requires_grad_(False)
    for parameter in flow.parameters():
        parameter.normal_(std=scale / parameter[0].numel() ** 0.5)
    return flow


def integers_of(spec, count, seed=0):
    return torch.randint(spec.levels, (count, *spec.shape), generator=torch.Generator().manual_seed(seed))


@dataclass
class Given:
    """Uniform numbers that are given."""

    numbers: torch.Tensor
    dtype = torch.float64

    def uniform(self):
        return self.numbers


def noise_for(values, dtype=torch.float32, first=0):
    return SampleNoise(0, values.shape, first=first, purpose="dequantization", dtype=dtype)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("event", EVENTS)
def test_untrained_it_is_uniform_dequantization(event, dtype, dequantize):
    spec = DataSpec(event, levels=5, dequantize=dequantize, model_range=(-2.0, 1.0))
    values = integers_of(spec, 200)
    x, log_q = VariationalDequantizer(spec).to(dtype)(values.to(dtype), noise_for(values, dtype), spec, VPSDE())
    expected, expected_log_q = uniform(values.to(dtype), noise_for(values, dtype), spec, VPSDE())
    assert x.dtype == dtype
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert torch.equal(log_q, expected_log_q)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("event", EVENTS)
def test_log_q_is_minus_the_log_determinant_of_the_map_from_uniform_numbers(event, dtype):
    """From the density 1 of the uniform numbers to that of x, by autograd's Jacobian of the whole map."""
    spec = DataSpec(event, levels=5)
    flow, values = randomized(spec, dtype=dtype), integers_of(spec, 4)

    numbers = torch.rand(4, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_q = flow(values, Given(numbers), spec, VPSDE())[1]
    points = lambda numbers: flow(values, Given(numbers), spec, VPSDE())[0].sum(0)  # a sample's derivatives are its own
    jacobian = torch.autograd.functional.jacobian(points, numbers).reshape(spec.dim, 4, spec.dim).movedim(1, 0)
    sign, log_det = torch.linalg.slogdet(jacobian)
    assert (sign == 1).all()
    torch.testing.assert_close(log_q, -log_det, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)
    assert (log_q + spec.log_det).abs().min() > 0.01  # not the uniform density


def test_q_is_a_density_on_the_whole_bin():
    """E_q[h / q] is the integral of h over the bin, for h of 1, u_1, u_1 u_2 and u_1^2.

    E_q is by the midpoint rule, whose error falls slowly with the number of points: 1 / q is large in corners of the bin.
    """
    spec, side = DataSpec((2,), levels=5), (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    flow = randomized(spec, scale=0.4)
    u, log_q = flow.warp(torch.tensor([[1, 3]]).expand(1_000_000, 2), torch.cartesian_prod(side, side))
    weight = (-log_q).exp()
    integrals = [(weight * h).mean().item() for h in (1, u[:, 0], u[:, 0] * u[:, 1], u[:, 0] ** 2)]
    assert integrals == pytest.approx([1, 1 / 2, 1 / 4, 1 / 3], abs=2e-3)
    assert log_q.std() > 0.2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dequantize", [True, False])
def test_points_lie_in_their_bins_however_far_the_flow_goes(dequantize, dtype):
    """Weights that drive sigmoid into both its ends, and uniform numbers that are exactly 0."""
    spec = DataSpec((1, 4, 4), levels=4, dequantize=dequantize)
    flow, values = randomized(spec, scale=10.0), integers_of(spec, 500)
    x, log_q = flow(values, noise_for(values, dtype), spec, VPSDE())
    assert x.dtype == dtype
    assert log_q.isfinite().all()
    place = spec.unscale(x.double()) - values + (0 if dequantize else 0.5)
    assert place.min() >= -1e-6
    assert place.max() <= 1 + 1e-6
    assert (place < 1e-6).any()
    assert (place > 1 - 1e-6).any()
    u, log_q = flow.warp(values, torch.zeros(500, 1, 4, 4))
    assert log_q.isfinite().all()
    assert ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("event", EVENTS)
def test_a_sample_does_not_depend_on_its_batch(event):
    spec = DataSpec(event, levels=5)
    flow, values = randomized(spec), integers_of(spec, 7)
    x, log_q = flow(values, noise_for(values), spec, VPSDE())
    part, part_log_q = flow(values[3:5], noise_for(values[3:5], first=3), spec, VPSDE())
    torch.testing.assert_close(part, x[3:5], rtol=0, atol=1e-5)
    torch.testing.assert_close(part_log_q, log_q[3:5], rtol=0, atol=1e-4)
    assert (x[0] - x[3]).abs().max() > 1e-3


@pytest.mark.parametrize("event", EVENTS)
def test_points_depend_on_the_integers_and_on_each_other(event):
    """Without the first q could not follow p from bin to bin; without the second it would be a product over coordinates."""
    spec = DataSpec(event, levels=5)
    flow, draw = randomized(spec, dtype=torch.float64), torch.full((1, *event), 0.3, dtype=torch.float64)
    low = flow.warp(torch.zeros(1, *event), draw)[0]
    assert (flow.warp(torch.full((1, *event), 4.0), draw)[0] - low).abs().min() > 1e-4
    jacobian = torch.autograd.functional.jacobian(lambda d: flow.warp(torch.zeros(1, *event), d)[0], draw)
    off_diagonal = jacobian.reshape(spec.dim, spec.dim) * (1 - torch.eye(spec.dim))
    assert (off_diagonal.abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize(
    "sde",
    [
        VPSDE(beta_max=50.0),
        pytest.param(SubVPSDE(beta_max=50.0), marks=pytest.mark.slow),
        pytest.param(VESDE(sigma_max=2000.0), marks=pytest.mark.slow),
    ],
    ids=["vp", "subvp", "ve"],
)
def test_the_bound_and_its_gradient(sde):
    """Through the exact log-density of a mixture by autograd, without an ODE; the prior is that of the noised data nearly."""
    score, spec = mixture((1, 2, 2)).score(sde), DataSpec((1, 2, 2), levels=6, model_range=(-2.0, 3.0))
    flow, values = randomized(spec, dtype=torch.float64).requires_grad_(), integers_of(spec, 5)
    draw = torch.rand(values.shape, dtype=torch.float64)
    u, log_q = flow.warp(values, draw)
    expected = log_q - spec.log_det - score.log_prob(spec.dequantized(values, u), sde.t_min)
    found = bound(flow, score, values, draw, solver=DualWeighted(steps=192, tolerance=1e-5), divergence="exact")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    gradients = [torch.autograd.grad(value.sum(), list(flow.parameters()), retain_graph=True) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.01 * other.norm() + 1e-6
    entropy = torch.autograd.grad(log_q.sum(), list(flow.parameters()))
    assert any((one - other).norm() > 0.1 * other.norm() for one, other in zip(entropy, gradients[1], strict=True))


def log_mass(score, spec, values):
    """log P of integers under a mixture with diagonal covariances at t_min, by erf: ``(B,)``."""
    truth, alpha, sigma = score.mixture, score.sde.alpha(score.sde.t_min), score.sde.sigma(score.sde.t_min)
    normal = torch.distributions.Normal(
        (alpha * truth.means)[..., None], (alpha**2 * truth.variances + sigma**2).sqrt()[..., None]
    )
    cells = normal.cdf(spec.scale(torch.arange(spec.levels + 1, dtype=torch.float64))).diff(dim=-1)
    parts = [cells[:, i, values[:, i]] for i in range(values.shape[1])]  # each (component, B)
    return (truth.weights[:, None] * torch.stack(parts).prod(0)).sum(0).log()


def gap(score, spec, values, dequantization):
    """Nats by which the bound lies above the exact code length: mean and standard error."""
    x, log_q = dequantization(values.double(), noise_for(values, torch.float64), spec, score.sde)
    difference = log_mass(score, spec, values) - (score.log_prob(x, score.sde.t_min) - log_q)
    return difference.mean().item(), difference.std().item() / len(values) ** 0.5


IN_1D = GaussianMixture(torch.tensor([[-0.35], [0.3]], dtype=torch.float64), [0.004, 0.012], [0.4, 0.6])
IN_2D = GaussianMixture(torch.tensor([[-0.4, -0.3], [0.3, 0.4]], dtype=torch.float64), [0.02, 0.015])


def check_that_it_closes(share, truth, sde, **options):
    """The bound of held-out integers stays above the exact code length and leaves at most 1 - ``share`` of uniform's gap."""
    score, spec = truth.score(sde), DataSpec(truth.event, levels=8)
    train, test = spec.quantized(truth.sample(9000, seed=1)).split([3000, 6000])
    flow = fit_dequantizer(score, TensorSource(train, spec), **options)
    before, before_error = gap(score, spec, test, uniform)
    after, after_error = gap(score, spec, test, flow)
    assert after > -4 * after_error
    assert after + 4 * after_error < (1 - share) * (before - 4 * before_error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "sde"), [(IN_1D, VPSDE()), (IN_2D, VESDE(sigma_min=1e-3, sigma_max=200.0))], ids=["1d, vp", "2d, ve"]
)
def test_short_training_closes_a_part_of_the_gap(truth, sde):
    check_that_it_closes(0.35, truth, sde, steps=200)


@pytest.mark.slow
def test_correlated_coordinates_of_a_bin_are_followed():
    """A ridge across the bin: the flow does far better than any product of densities of its coordinates.

    The mass of the bin and the best product, found by coordinate descent (a mean field), are by quadrature.
    """
    spec, sde = DataSpec((2,), levels=2), VPSDE()
    ridge = GaussianMixture(torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([[[0.5, 0.49], [0.49, 0.5]]]).double())
    score, values = ridge.score(sde), torch.tensor([[1, 1]]).expand(4000, 2)
    side = (torch.arange(400, dtype=torch.float64) + 0.5) / 400  # the bin is [0, 1)^2
    grid = score.log_prob(torch.cartesian_prod(side, side), sde.t_min).reshape(400, 400)
    log_probability = grid.logsumexp((0, 1)) - math.log(400**2)
    first = second = torch.full((400,), 1 / 400, dtype=torch.float64)
    for _ in range(50):
        first = (grid @ second).softmax(0)
        second = (first @ grid).softmax(0)
    product = first[:, None] * second
    best_product = log_probability - (product * (grid - (400**2 * product).log())).sum()
    flow = fit_dequantizer(score, TensorSource(values, spec), steps=250)
    x, log_q = flow(values.double(), noise_for(values, torch.float64), spec, sde)
    difference = log_probability - (score.log_prob(x, sde.t_min) - log_q)
    assert best_product > 0.5
    assert difference.mean() > -4 * difference.std() / 4000**0.5
    assert difference.mean() < 0.2 * best_product


def small_model(event=(2,), levels=4):
    model = ScoreModel(MLP(event, width=8, depth=1), VPSDE(), DataSpec(event, levels=levels))
    for parameter in model.parameters():  # an output layer of zeros has no gradient to lose
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("event", EVENTS)
def test_the_model_stays_as_it_is(event):
    model, times = small_model(event), []
    before, mode = copy.deepcopy(model.state_dict()), model.training
    values = integers_of(model.data, 20).to(torch.uint8)
    flow = fit_dequantizer(Recorder(model, times), TensorSource(values, model.data), steps=3, batch_size=4)
    assert len(times) == 3 * 25
    assert (min(times), max(times)) == (pytest.approx(1e-5), pytest.approx(1.0))
    assert model.training == mode
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not flow.training
    assert not any(parameter.requires_grad for parameter in flow.parameters())
    assert any(parameter.abs().max() > 0 for parameter in flow.conditioners[0][-1].parameters())
    log_q = flow(values.float(), noise_for(values), model.data, model.sde)[1]
    assert not log_q.requires_grad


@pytest.mark.slow
def test_the_same_seed_gives_the_same_dequantizer_and_leaves_other_random_numbers_alone():
    model = small_model()
    source, state = TensorSource(integers_of(model.data, 50), model.data), torch.get_rng_state()
    fit = lambda seed: fit_dequantizer(model, source, steps=5, seed=seed).state_dict()
    first = fit(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second, other = fit(1), fit(2)
    assert all(torch.equal(first[key], value) for key, value in second.items())
    for key in ("conditioners.0.0.weight", "conditioners.0.4.weight"):  # random at first, and zero at first
        assert not torch.equal(first[key], other[key])


def test_it_is_saved_by_its_state_dict(tmp_path):
    spec = DataSpec((1, 3, 3), levels=4)
    flow, values = randomized(spec), integers_of(spec, 5)
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    other = VariationalDequantizer(spec)
    other.load_state_dict(torch.load(tmp_path / "flow.pt", weights_only=True))
    for one, two in zip(*(d(values, noise_for(values), spec, VPSDE()) for d in (flow, other)), strict=True):
        assert torch.equal(one, two)
    assert flow.name == "variational"


def test_each_sample_is_told_its_own_condition():
    @dataclass
    class Told:
        sde = VPSDE()
        calls = 0

        def __call__(self, x, t, cond=None):
            self.calls += 1
            if t[0] < 1e-4:
                assert torch.equal(spec.quantized(x)[:, 0], cond)
            return -x

    spec, told = DataSpec((2,), levels=4), Told()
    values = integers_of(spec, 64)
    source = TensorSource(values, spec, values[:, 0])
    fit_dequantizer(told, source, conditional=True, steps=3, batch_size=32)
    assert told.calls == 3 * 25


def test_a_score_that_is_not_finite_stops_the_training():
    score = BrokenScore(IN_2D.score(VPSDE()), lambda t: t < 1e-4)
    with pytest.raises(SolverError, match=r"not finite at t = 1e-05"):
        fit_dequantizer(score, TensorSource(torch.zeros(4, 2), DataSpec((2,), levels=8)), steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"couplings": 0}, "couplings must be positive"),
        ({"width": 0}, "width must be positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit_dequantizer(IN_2D.score(VPSDE()), TensorSource(torch.zeros(4, 2), DataSpec((2,), levels=8)), **options)


def test_continuous_data_is_refused():
    with pytest.raises(ValueError, match="continuous data has no bins"):
        fit_dequantizer(IN_2D.score(VPSDE()), TensorSource(torch.zeros(4, 2), DataSpec((2,))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(0, 2), "empty"),
        (torch.full((4, 2), 8), "from 8 to 8"),
        (torch.full((4, 2), 0.5), "fractions"),
    ],
)
def test_data_that_does_not_fit_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        fit_dequantizer(IN_2D.score(VPSDE()), TensorSource(values, DataSpec((2,), levels=8)))


def test_another_description_of_the_data_is_refused():
    with pytest.raises(ValueError, match="one to four dimensions"):
        VariationalDequantizer(DataSpec((1, 2, 2, 2, 2), levels=4))
    spec = DataSpec((2,), levels=4)
    with pytest.raises(ValueError, match=r"was made for DataSpec.*levels=4.*the model has DataSpec.*levels=8"):
        VariationalDequantizer(spec)(torch.zeros(1, 2), noise_for(torch.zeros(1, 2)), DataSpec((2,), levels=8), VPSDE())
