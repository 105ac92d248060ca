"""Mixtures whose densities, moments and cells are known."""

import math

import torch

from score_sde import GaussianMixture


def mixture(shape=(2,), dtype=torch.float64, components=3, seed=0) -> GaussianMixture:
    """A mixture with full covariances of moderate condition, over events of ``shape``."""
    random = torch.Generator().manual_seed(seed)
    dim = math.prod(shape)
    means = torch.randn(components, *shape, generator=random, dtype=torch.float64)
    factor = torch.randn(components, dim, dim, generator=random, dtype=torch.float64) / dim**0.5
    covariances = 0.3 * factor @ factor.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(means.to(dtype), covariances.to(dtype), [0.2, 0.3, 0.5][:components])


def gaussian(mean=0.7, variance=0.3):
    """One-dimensional Gaussian data."""
    return GaussianMixture(torch.tensor([[mean]], dtype=torch.float64), [variance])


def exact_moments(sde, t, mean=0.7, variance=0.3):
    """Mean and variance of x_t for the data of ``gaussian``."""
    return sde.alpha(t) * mean, sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2


def digits_mixture() -> GaussianMixture:
    """Ten classes of digits, each with its own mean and covariance (+ 0.02^2 I), in [-1, 1]."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x, classes = torch.from_numpy(images / 8 - 1), torch.from_numpy(classes)
    groups = [x[classes == k] for k in range(10)]
    covariances = [group.mT.cov() + 0.02**2 * torch.eye(64, dtype=torch.float64) for group in groups]
    weights = torch.tensor([float(len(group)) for group in groups])
    return GaussianMixture(torch.stack([group.mean(0) for group in groups]), torch.stack(covariances), weights)


def cell_probabilities(score, spec, t_min):
    """What the model's density at t_min puts on each cell of the grid, by erf; ``(levels, ..., levels)``."""
    truth, alpha, sigma = score.mixture, float(score.sde.alpha(t_min)), float(score.sde.sigma(t_min))
    edges = alpha * torch.linspace(-1, 1, spec.levels + 1, dtype=torch.float64)
    std = (alpha**2 * truth.variances + sigma**2).sqrt()
    cells = torch.distributions.Normal(alpha * truth.means[..., None], std[..., None]).cdf(edges).diff(dim=-1)
    total = 0
    for weight, component in zip(truth.weights, cells, strict=True):
        product = weight
        for axis in component:  # of each coordinate, its levels
            product = product[..., None] * axis
        total = total + product
    return total
