"""Every dequantization bounds the exact code length of a discrete model: 8 levels, one to four dimensions, by summation.

The model is a mixture with diagonal covariances at t_min, so that the probability of a cell is a product of differences of
erf. Integers are drawn from it, and a bound is compared with -log2 P of the very same integers.
"""

import pytest
import torch

from score_sde import VESDE, VPSDE, DataSpec, GaussianMixture, bits_per_dim
from score_sde.data import TensorSource
from score_sde.likelihood import DualWeighted, fit_dequantizer
from tests.oracles import cell_probabilities

COUNT = 400
SOLVER = DualWeighted(steps=32)
SDES = {"vp": VPSDE(), "ve": VESDE(sigma_min=1e-3, sigma_max=200.0)}


def model_of(dim, sde):
    """Three components with diagonal covariances, hardly wider than a bin of 0.25, well inside [-1, 1]."""
    random = torch.Generator().manual_seed(dim)
    means = 0.9 * torch.rand(3, dim, generator=random, dtype=torch.float64) - 0.45
    variances = 0.004 + 0.012 * torch.rand(3, dim, generator=random, dtype=torch.float64)
    return GaussianMixture(means, variances, [0.5, 0.3, 0.2]).score(sde), DataSpec((dim,), levels=8)


def drawn(score, spec, seed=1):
    """Integers of the model's density at t_min."""
    truth, sde = score.mixture, score.sde
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    noised = GaussianMixture(alpha * truth.means, alpha**2 * truth.variances + sigma**2, truth.weights)
    return spec.quantized(noised.sample(COUNT, seed=seed) / alpha)


def gap(score, spec, values, exact, **options):
    """Bits per dimension of a bound above the exact code lengths ``(N,)``, in the mean, and its standard error."""
    how = {"data": spec, "divergence": "exact", "solver": SOLVER, "audit": 0, "batch_size": COUNT, **options}
    difference = torch.tensor(bits_per_dim(score, values, **how).per_sample, dtype=torch.float64) - exact
    return difference.mean().item(), difference.std().item() / len(values) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [*(("vp", dim) for dim in (1, 2, 3, 4)), ("ve", 1), ("ve", 3)])
def test_every_bound_lies_above_the_code_length(name, dim):
    score, spec = model_of(dim, SDES[name])
    probability = cell_probabilities(score, spec, score.sde.t_min)
    assert probability.sum().item() == pytest.approx(1, abs=1e-3)  # hardly any mass outside the grid
    values = drawn(score, spec)
    exact = -probability[tuple(values.T.long())].log2() / dim
    entropy = -(probability * probability.log2().clamp_min(-1e4)).sum().item() / dim
    assert exact.mean().item() == pytest.approx(entropy, abs=4 * exact.std().item() / COUNT**0.5)
    learned = fit_dequantizer(score, TensorSource(drawn(score, spec, seed=2), spec))
    gaps = {
        "uniform": gap(score, spec, values, exact),
        "uniform 4": gap(score, spec, values, exact, importance_samples=4),
        "uniform 16": gap(score, spec, values, exact, importance_samples=16),
        "truncated normal": gap(score, spec, values, exact, dequantization="truncated_normal"),
        "variational": gap(score, spec, values, exact, dequantization=learned),
        "truncation": gap(score, spec, values, exact, truncation=True),
    }
    for bound, (mean, error) in gaps.items():
        assert mean > -4 * error - 1e-3, bound  # the solver's error is 1e-3
    assert gaps["uniform"][0] > gaps["uniform 4"][0] > gaps["uniform 16"][0]
    assert gaps["uniform 16"][0] < 0.4 * gaps["uniform"][0]
    assert gaps["variational"][0] < 0.6 * gaps["uniform"][0]
    assert gaps["truncated normal"][0] > gaps["uniform"][0] + 3  # the noise of t_min is far narrower than a bin here
