import pytest
import torch

from score_sde.divergence import ExactDivergence, Hutchinson
from score_sde.tensors import SampleNoise

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
    torch.testing.assert_close(divergence, jacobian.diagonal(dim1=1, dim2=2).sum(1))
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
    assert abs(estimates.mean() + 0.5) < 4 * (variance / count) ** 0.5
    assert abs(estimates.var() / variance - 1) < 0.15


@pytest.mark.parametrize("event", EVENTS)
def test_rademacher_probes_are_exact_on_a_diagonal_jacobian(event):
    x = torch.randn(3, *event)
    estimator = Hutchinson(1)
    value, divergence, _ = estimator(lambda x: x**3, x, estimator.draw(SampleNoise(0, x.shape)))
    torch.testing.assert_close(divergence, (3 * x**2).flatten(1).sum(1))
    torch.testing.assert_close(value, x**3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ExactDivergence(0), "chunk"),
        (lambda: Hutchinson(0), "probes"),
        (lambda: Hutchinson(1, "normal"), "rademacher, gaussian"),
    ],
)
def test_bad_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
