import itertools
import math

import pytest
import torch

from score_sde import VPSDE, ProbabilityFlow, log_likelihood
from score_sde.divergence import DIVERGENCES, ExactDivergence, Hutchinson, HutchPlusPlus, as_divergence
from score_sde.tensors import SampleNoise
from tests.oracles import mixture

EVENTS = [(3,), (2, 3), (1, 2, 3), (2, 1, 2, 2)]


def nonlinear(x):
    """A field in which every coordinate depends on every other of its sample."""
    flat = x.flatten(1)
    weights = torch.linspace(-1, 1, flat.shape[1] ** 2, dtype=x.dtype).reshape(flat.shape[1], -1)
    return (torch.tanh(flat @ weights) + flat**2 * 0.3).reshape(x.shape)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_divergence_is_the_trace_of_the_jacobian(event, chunk, dtype):
    x = torch.randn(4, *event, dtype=dtype)
    value, divergence, products = ExactDivergence(chunk)(nonlinear, x)
    dim = x[0].numel()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: nonlinear(point[None])[0]))(x).reshape(4, dim, dim)
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1)[None])
    torch.testing.assert_close(value, nonlinear(x))
    assert products == dim
    assert divergence.dtype == dtype


MATRIX = torch.tensor([[2.0, 1.0, -1.0], [0.5, -3.0, 0.2], [0.4, 0.8, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [1, 2, 7])
def test_hutchinson_is_unbiased_with_the_known_variance(distribution, probes):
    """On a linear field the trace is -0.5 and the variance 2 sum S_ij^2 / m, without the diagonal for Rademacher probes."""
    estimator, count = Hutchinson(probes, distribution), 8000
    x = torch.zeros(count, 3, dtype=torch.float64)
    drawn = estimator.draw(SampleNoise(0, x.shape, dtype=torch.float64))
    assert drawn.shape == (probes, count, 3)
    _, estimates, products = estimator(lambda x: x @ MATRIX.T, x, drawn)
    symmetric = (MATRIX + MATRIX.T) / 2
    if distribution == "rademacher":
        symmetric = symmetric - symmetric.diag().diag()
    variance = 2 * symmetric.square().sum() / probes
    assert products == probes
    mean = estimates.mean(0)
    assert abs(mean.mean() + 0.5) < 4 * (variance / count) ** 0.5
    assert abs(mean.var() / variance - 1) < 0.15
    if probes == 1:
        assert estimator.variance(estimates, 3) is None
    else:
        assert abs(estimator.variance(estimates, 3).mean() / variance - 1) < 0.1


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_orthogonal_probes_are_unbiased_with_the_known_variance(probes):
    """2 / m D (D - m) / ((D - 1) (D + 2)) |S0|^2, measured on 8000 samples; nothing is left of it at m = D."""
    count, trace = 8000, MATRIX.trace()
    x = torch.zeros(count, 3, dtype=torch.float64)
    estimator = Hutchinson(probes, "orthogonal")
    _, estimates, _ = estimator(lambda x: x @ MATRIX.T, x, estimator.draw(SampleNoise(0, x.shape, dtype=x.dtype)))
    mean = estimates.mean(0)
    traceless = (MATRIX + MATRIX.T) / 2 - trace / 3 * torch.eye(3)
    variance = 2 / probes * 3 * (3 - probes) / (2 * 5) * traceless.square().sum()
    if probes == 3:
        assert (mean - trace).abs().max() < 1e-12
        assert not estimator.variance(estimates, 3).any()
    else:
        assert abs(mean.mean() - trace) < 4 * (variance / count) ** 0.5
        assert abs(mean.var() / variance - 1) < 0.1
    if probes == 2:
        assert abs(estimator.variance(estimates, 3).mean() / variance - 1) < 0.1


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_probes_are_orthogonal_and_of_norm_root_d(event, dtype):
    dim, close = math.prod(event), {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for count in (1, dim - 1, dim):
        probes = Hutchinson(count, "orthogonal").draw(SampleNoise(0, (5, *event), dtype=dtype))
        assert probes.shape == (count, 5, *event)
        assert probes.dtype == dtype
        flat = probes.flatten(2).transpose(0, 1)
        assert (flat @ flat.mT - dim * torch.eye(count, dtype=dtype)).abs().max() < close * dim


def test_each_orthogonal_probe_is_uniform_on_the_sphere():
    """E[v] = 0, E[v v^T] = I, and in three dimensions each coordinate is uniform on (-root 3, root 3) (Archimedes)."""
    count = 8000
    for probe in Hutchinson(3, "orthogonal").draw(SampleNoise(0, (count, 3), dtype=torch.float64)):
        assert probe.mean(0).abs().max() < 4 / count**0.5
        assert (probe.T @ probe / count - torch.eye(3)).abs().max() < 4 / count**0.5
        rank = (probe.sort(0).values / 3**0.5 + 1) / 2
        distance = (rank - ((torch.arange(count) + 0.5) / count).unsqueeze(1)).abs().max()
        assert distance < 1.95 / count**0.5  # Kolmogorov's distance is larger in one case of 1000


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_orthogonal_probes_as_coordinates_are_exact(event, dtype):
    x = torch.randn(4, *event, dtype=dtype)
    estimator = Hutchinson(x[0].numel(), "orthogonal")
    value, divergence, _ = estimator(nonlinear, x, estimator.draw(SampleNoise(0, x.shape, dtype=dtype)))
    torch.testing.assert_close(divergence.mean(0), ExactDivergence()(nonlinear, x)[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, nonlinear(x))
    assert divergence.dtype == dtype


def signs(count, dim):
    """Every choice of ``count`` vectors of ``dim`` signs, ``(count, 2^(count dim), dim)``."""
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count * dim)), dtype=torch.float64)
    return every.reshape(-1, count, dim).transpose(0, 1)


@pytest.mark.parametrize("probes", [3, 4, 6])
def test_hutch_plus_plus_is_unbiased_over_every_choice_of_signs(probes):
    """All signs are equally likely, so the mean over all of them is the expectation, without sampling error."""
    drawn = signs(probes - probes // 3, 3)
    assert drawn.shape[::2] == HutchPlusPlus(probes).draw(SampleNoise(0, (1, 3))).shape[::2]
    estimates = HutchPlusPlus(probes)(lambda x: x @ MATRIX.T, torch.zeros_like(drawn[0]), drawn)[1].mean(0)
    assert abs(estimates.mean() - MATRIX.trace()) < 1e-12
    assert estimates.std() > 0.1


@pytest.mark.parametrize("probes", [3, 4])
def test_hutch_plus_plus_is_unbiased_with_the_known_variance_for_every_sketch(probes):
    """Given S: mean tr J, variance 2 / (m - 2 k) sum_{i != j} R_ij^2; P = I - A A^+, A = J^T S, without QR."""
    drawn = signs(probes - 1, 3)
    _, single, _ = HutchPlusPlus(probes)(lambda x: x @ MATRIX.T, torch.zeros_like(drawn[0]), drawn)
    estimates = single.mean(0)
    for sketch in signs(1, 3)[0]:
        chosen = estimates[(drawn[0] == sketch).all(1)]
        image = (MATRIX.T @ sketch).unsqueeze(1)
        rest = torch.eye(3) - image @ torch.linalg.pinv(image)
        remainder = rest @ (MATRIX + MATRIX.T) / 2 @ rest
        variance = 2 / (probes - 2) * (remainder - remainder.diag().diag()).square().sum()
        assert abs(chosen.mean() - MATRIX.trace()) < 1e-12
        assert abs(chosen.var(correction=0) - variance) < 1e-12


@pytest.mark.parametrize("event", EVENTS[1:])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize(("probes", "rank"), [(3, 1), (6, 2), (6, 1), (6, 0), (11, 3)])
def test_hutch_plus_plus_is_exact_on_a_jacobian_of_low_rank(event, dtype, close, probes, rank):
    """J = U diag(tanh' (V x)) V, another for every sample, of rank at most k."""
    dim = math.prod(event)
    u, v = torch.randn(dim, rank, dtype=torch.float64).to(dtype), torch.randn(rank, dim, dtype=torch.float64).to(dtype)
    x = torch.randn(5, *event, dtype=dtype)
    field = lambda x: (torch.tanh(x.flatten(1) @ v.T) @ u.T).reshape(x.shape)
    estimator = HutchPlusPlus(probes)
    value, divergence, _ = estimator(field, x, estimator.draw(SampleNoise(0, x.shape, dtype=dtype)))
    trace = ((1 - torch.tanh(x.flatten(1) @ v.T) ** 2) * (v.T * u).sum(0)).sum(1)
    assert (divergence - trace).abs().max() < close * (1 + (u.norm() * v.norm()).item())
    torch.testing.assert_close(value, field(x))
    assert divergence.dtype == dtype


def decaying(dim=30):
    """A symmetric matrix with eigenvalues 1 / i^2 in random directions."""
    basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    return basis @ (torch.arange(1, dim + 1, dtype=torch.float64) ** -2).diag() @ basis.T


@pytest.mark.parametrize(("probes", "ratio"), [(6, 4), (12, 25), (24, 200)])
def test_hutch_plus_plus_beats_hutchinson_where_the_spectrum_decays(probes, ratio):
    """Variances at equal numbers of products for eigenvalues 1 / i^2, D = 30: about 6, 40 and 370 times smaller."""
    matrix, variance = decaying(), {}
    x = torch.zeros(2000, 30, dtype=torch.float64)
    for estimator in (Hutchinson(probes), HutchPlusPlus(probes)):
        drawn = estimator.draw(SampleNoise(0, x.shape, dtype=x.dtype))
        _, single, products = estimator(lambda x: x @ matrix.T, x, drawn)
        estimates = single.mean(0)
        assert products == probes
        assert abs(estimates.mean() - matrix.trace()) < 5 * estimates.std() / len(x) ** 0.5
        variance[type(estimator)] = estimates.var()
    assert variance[Hutchinson] > ratio * variance[HutchPlusPlus]


ESTIMATES = {name: DIVERGENCES[name] for name in DIVERGENCES if name != "exact"}


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_forward_pass_and_the_number_of_products_is_the_true_one(name, event, dtype):
    forwards, backwards = [], []

    def field(x):
        value = nonlinear(x)
        forwards.append(1)
        value.register_hook(lambda gradient: backwards.append(gradient.shape))
        return value

    x = torch.randn(2, *event, dtype=dtype)
    estimator = ESTIMATES[name](3)
    with torch.no_grad():
        value, divergence, products = estimator(field, x, estimator.draw(SampleNoise(0, x.shape, dtype=dtype)))
    assert len(forwards) == 1
    assert backwards == [x.shape] * products
    assert products == 3
    assert divergence.shape == (1 if name == "hutch++" else 3, 2)
    assert value.dtype == divergence.dtype == dtype
    assert not value.requires_grad
    assert not divergence.requires_grad
    torch.testing.assert_close(value, nonlinear(x))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("event", EVENTS)
def test_a_divergence_can_be_differentiated_where_autograd_is_on(name, event):
    """Against finite differences of itself, probes held fixed."""
    x = torch.randn(2, *event, dtype=torch.float64)
    estimator = DIVERGENCES[name](3)
    probes = estimator.draw(SampleNoise(0, x.shape, dtype=x.dtype))
    total = lambda point: estimator(nonlinear, point, probes)[1].mean(0).sum()
    (gradient,) = torch.autograd.grad(total(x.requires_grad_()), x)
    direction, step = torch.randn(x.shape, dtype=x.dtype), 1e-5
    with torch.no_grad():
        slope = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


@pytest.mark.parametrize("probes", [3, 4, 5, 6, 8])
def test_hutch_plus_plus_uses_as_many_products_as_it_is_given(probes):
    backwards, x = [], torch.randn(2, 9)

    def field(x):
        value = nonlinear(x)
        value.register_hook(lambda gradient: backwards.append(1))
        return value

    estimator = HutchPlusPlus(probes)
    *_, products = estimator(field, x, estimator.draw(SampleNoise(0, x.shape)))
    assert len(backwards) == products == probes


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("event", EVENTS)
def test_an_estimate_depends_on_its_sample_and_its_seed_alone(name, event):
    x = torch.randn(6, *event, dtype=torch.float64)
    estimator = ESTIMATES[name](3)

    def estimate(x, seed=0, first=0):
        return estimator(nonlinear, x, estimator.draw(SampleNoise(seed, x.shape, first=first, dtype=x.dtype)))[1].mean(0)

    together = estimate(x)
    for i in range(6):
        assert abs(estimate(x[i : i + 1], first=i) - together[i]) < 1e-9
    neighbours = x.clone()
    neighbours[:3] *= 1e3
    neighbours[5] = math.nan
    changed = estimate(neighbours)
    assert (changed[3:5] - together[3:5]).abs().max() < 1e-9
    assert changed[5].isnan()
    if math.prod(event) > 3:  # three orthogonal probes are exact in three dimensions, whatever the seed
        assert (estimate(x, seed=1) - together).abs().min() > 1e-6


@pytest.mark.parametrize("probes", [3, pytest.param(6, marks=pytest.mark.slow), 12])
def test_hutch_plus_plus_is_smooth_along_a_trajectory(probes):
    """An adaptive solver gets through at 1e-6 in few steps: with a sketch of signs two columns may agree, and it gave up."""
    score, x = mixture((4,)).score(VPSDE()), mixture((4,)).sample(64, seed=4)
    solver = ProbabilityFlow(rtol=1e-6, atol=1e-6)
    exact = log_likelihood(score, x, solver=solver)
    assert log_likelihood(score, x, solver=solver, divergence=HutchPlusPlus(probes)).nfe < 4 * exact.nfe


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.quick("hutchinson", "hutch++")
def test_log_p_of_a_mixture_is_found_within_the_noise_of_the_probes(name):
    """Against the closed form, with the density at T known, over 400 points: 5 standard errors and rk4's own 2e-4."""
    sde = VPSDE()
    score, x = mixture((4,)).score(sde), mixture((4,)).sample(400, seed=4)
    options = {"solver": ProbabilityFlow(method="rk4", steps=40, grid="log_snr"), "prior": lambda z: score.log_prob(z, sde.T)}
    truth = score.log_prob(x, sde.t_min)
    for divergence in (name, ESTIMATES[name](3)):
        result = log_likelihood(score, x, divergence=divergence, **options)
        error = result.log_prob - truth
        assert abs(error.mean()) < 5 * error.std() / 20 + 2e-4
        assert error.std() > 0.01
        probes = 1 if isinstance(divergence, str) and name != "hutch++" else 3
        assert result.vjps == probes * result.nfe


@pytest.mark.parametrize("event", EVENTS)
def test_rademacher_probes_are_exact_on_a_diagonal_jacobian(event):
    x = torch.randn(3, *event)
    estimator = Hutchinson(1)
    value, divergence, _ = estimator(lambda x: x**3, x, estimator.draw(SampleNoise(0, x.shape)))
    torch.testing.assert_close(divergence, (3 * x**2).flatten(1).sum(1)[None])
    torch.testing.assert_close(value, x**3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExactDivergence(0), "chunk"),
        (lambda: Hutchinson(0), "probes"),
        (lambda: Hutchinson(1, "normal"), "rademacher, gaussian, orthogonal"),
        (lambda: Hutchinson(0, "orthogonal"), "probes"),
        (lambda: Hutchinson(7, "orthogonal").draw(SampleNoise(0, (2, 2, 3))), "at most 6 probes can be orthogonal"),
        (lambda: HutchPlusPlus(2), "at least 3 probes"),
        (lambda: HutchPlusPlus(9).draw(SampleNoise(0, (2, 2))), "fewer than 9 probes in 2 dimensions"),
        (lambda: as_divergence("hutch++", 1), "at least 3 probes"),
        (lambda: as_divergence("hutch+"), "hutchinson_orthogonal, hutch"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
