r"""Distances between samples and data that need no network.

Sliced Wasserstein distance (Rabin et al. 2011; Bonneel et al. 2015): the root of the mean, over random directions, of the
squared Wasserstein-2 distance between one-dimensional projections, which sorting gives exactly.

Energy distance (Székely and Rizzo 2013, "Energy statistics", Section 2): with X, X' drawn from one distribution and Y, Y' from
the other,

    D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|  >=  0,   and 0 only where the two are the same.

|X - Y| being Euclidean, D is in the units of the data; the root of it is a metric. The estimate replaces each expectation by
the mean over pairs of *different* points, so it is unbiased (a U-statistic): 0 on average for two sets of one distribution,
whatever their sizes, and sometimes negative. With pairs of a point and itself (the V-statistic) it would never be negative and
would be too large by about (E|X - X'|)/n + (E|Y - Y'|)/m.

Its interval is that of the percentile bootstrap: both sets are drawn again with replacement, which only gives each point a
count. A resample holds some points twice, and the distance of such a pair is 0; a mean over all pairs of the resample would
therefore be lower than the estimate by the share 1/n of these pairs, and D higher by just the bias that the U-statistic avoids.
So pairs of copies of one point are left out here too: with counts c,

    E|X - X'|  ~  sum_{i != j} c_i c_j |x_i - x_j| / (n^2 - sum_i c_i^2),

and the resamples scatter around the estimate. Where the two distributions are equal the leading term of the error vanishes and
the bootstrap is not exact; the interval is then too wide rather than too narrow.

Precision and recall (Kynkäänniemi et al. 2019, Eq. 1-2): a set is taken to cover the balls around its points that reach to
their k-th nearest neighbours. Precision is the share of samples that the data covers, recall the share of the data that the
samples cover. Samples that are spread far apart have large balls: their recall means nothing where their precision is near 0.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.tensors import generator

Features = Callable[[Tensor], Tensor]
"""Events ``(N, *D)`` to features ``(N, F)``."""

BLOCK = 2**22
"""How many distances are held in memory at a time."""


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance between two sets of samples ``(N, *D)`` and ``(M, *D)``, in their own units.

    Sets of different sizes are compared at the quantiles of the smaller one. The distance between two sets drawn from the
    same distribution is not 0 but falls with their sizes: compare it with that between two sets of data of the same sizes.

    Raises:
        ValueError: the events differ in shape, or a set is empty.
    """
    a, b = _flat(a, b, least=1)
    draw = generator(seed, "directions", device=a.device)
    direction = torch.randn(a.shape[1], directions, generator=draw, device=a.device, dtype=torch.float64)
    direction /= direction.norm(dim=0)
    count = min(len(a), len(b))
    quantiles = (torch.arange(count, device=a.device, dtype=torch.float64) + 0.5) / count
    first, second = (_at_quantiles((set_ @ direction).sort(dim=0).values, quantiles) for set_ in (a, b))
    return (first - second).square().mean().sqrt().item()


def _at_quantiles(ordered: Tensor, quantiles: Tensor) -> Tensor:
    """Values of ``ordered`` ``(n, k)``, whose row i is the quantile (i + 1/2)/n, interpolated at ``quantiles``."""
    position = (quantiles * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (position - low)[:, None])


class Estimate(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


class EnergyDistance:
    """The energy distance to one set of data ``(M, *D)``: called with samples ``(N, *D)``, it returns an ``Estimate``.

    What concerns the data alone is computed once. Samples of the same number are resampled alike, whichever they are, so that
    estimates of several samplers from the same latents move together: their differences are surer than their intervals say.

    Args:
        data: at least 2 events.
        resamples: of the bootstrap.
        level: the share of the resamples between the ends of the interval.
        seed: of the resamples.

    Raises:
        ValueError: events differ in shape, or there are fewer than 2 in a set; ``resamples`` or ``level`` is out of range.
    """

    def __init__(self, data: Tensor, *, resamples: int = 400, level: float = 0.95, seed: int = 0):
        if resamples < 1 or not 0 < level < 1:
            raise ValueError(f"resamples must be positive and level between 0 and 1, got {resamples} and {level}")
        self.data, self.resamples, self.level, self.seed = data, resamples, level, seed
        flat, _ = _flat(data, data, least=2)
        self.shift, self.counts = flat.mean(0), self._counts(flat, "data")
        self.within = _mean_distance(flat - self.shift, self.counts)

    def __call__(self, samples: Tensor) -> Estimate:
        """The distance of ``samples`` ``(N, *D)`` to the data, in the units of both, and its interval."""
        b, a = _flat(self.data, samples, least=2)
        a, b, counts = a - self.shift, b - self.shift, self._counts(a, "samples")
        between = _sum_of_distances(a, b, counts, self.counts) / (len(a) * len(b))
        found = 2 * between - _mean_distance(a, counts) - self.within
        tail = (1 - self.level) / 2
        # a resample of very few points may hold one point alone, of which there is no pair
        low, high = torch.nanquantile(found[1:], found.new_tensor([tail, 1 - tail])).tolist()
        return Estimate(found[0].item(), low, high)

    def _counts(self, points: Tensor, purpose: str) -> Tensor:
        """How often each point is drawn, ``(resamples + 1, N)``: once each in the first row, which gives the estimate."""
        count = len(points)
        drawn = torch.randint(count, (self.resamples, count), generator=generator(self.seed, "bootstrap", purpose))
        counts = torch.zeros(self.resamples, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
        return torch.cat([torch.ones(1, count, dtype=torch.float64), counts]).to(points.device)


def energy_distance(a: Tensor, b: Tensor, *, resamples: int = 400, level: float = 0.95, seed: int = 0) -> Estimate:
    """The energy distance between two sets ``(N, *D)`` and ``(M, *D)`` and its bootstrap interval, in their own units.

    It is 2 E|X - Y| - E|X - X'| - E|Y - Y'| itself, not its root (scipy's ``energy_distance`` is the root), estimated without
    bias. Arguments and errors are those of ``EnergyDistance``.
    """
    return EnergyDistance(b, resamples=resamples, level=level, seed=seed)(a)


def _mean_distance(a: Tensor, counts: Tensor) -> Tensor:
    """Mean distance of pairs of different points of ``a`` ``(N, d)``, one for each row of ``counts`` ``(R, N)``: ``(R,)``."""
    # the distance of a point to itself is 0, up to the rounding that _sum_of_distances clears
    return _sum_of_distances(a, a, counts, counts) / (len(a) ** 2 - counts.square().sum(1))


def _sum_of_distances(a: Tensor, b: Tensor, a_counts: Tensor, b_counts: Tensor) -> Tensor:
    total = a.new_zeros(len(a_counts))
    for rows in _blocks(a, b):
        distances = torch.cdist(a[rows], b)
        if a is b:
            distances[torch.arange(len(rows)), rows] = 0.0
        total += ((a_counts[:, rows] @ distances) * b_counts).sum(1)
    return total


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1: of the samples that the data covers, and of the data that the samples cover."""

    precision: float
    recall: float


def precision_recall(samples: Tensor, data: Tensor, *, k: int = 3, features: Features | None = None) -> PrecisionRecall:
    """Precision and recall of ``samples`` ``(N, *D)`` against ``data`` ``(M, *D)``.

    Both depend on the sizes of the sets, as the balls shrink where points are many: give equally many samples and data, as the
    paper does, and compare with what two sets of data give. The standard error of a share p of N points is about
    sqrt(p (1 - p)/N): a few dozen points tell little.

    Args:
        samples: more than ``k`` events.
        data: more than ``k`` events.
        k: whose nearest neighbour the balls reach, 3 in the paper.
        features: events to feature vectors ``(N, F)``, such as the last hidden layer of a classifier; by default
            ``principal_components(data)``, which needs no network to be downloaded but knows no more of images than pixels.

    Raises:
        ValueError: events differ in shape, there are not more than ``k`` in a set, ``k`` is below 1, or ``features`` does not
            return one vector for each.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if samples.shape[1:] != data.shape[1:] or min(len(samples), len(data)) <= k:
        raise ValueError(
            f"expected two sets of more than k = {k} events of one shape, got {tuple(samples.shape)} and {tuple(data.shape)}"
        )
    features = features or principal_components(data)
    fake, real = (features(set_.to(samples.device)) for set_ in (samples, data))
    if fake.ndim != 2 or real.ndim != 2 or (len(fake), len(real)) != (len(samples), len(data)):
        raise ValueError(
            f"features must return a vector for each event: got {tuple(fake.shape)} for {len(samples)} samples and "
            f"{tuple(real.shape)} for {len(data)} data points"
        )
    fake, real = fake.double(), real.double()
    return PrecisionRecall(_covered(fake, real, k), _covered(real, fake, k))


def principal_components(data: Tensor, *, components: int = 32) -> Features:
    """Features that keep what is large in ``data`` ``(N, *D)``: its first principal components, and how much is left.

    They are not whitened: distances are then those of the data itself, while whitened directions of little variance, which in
    images are noise, would count as much as those that make the picture. Distances between nearest neighbours say little in
    many dimensions, so at most ``components`` are kept; the norm of the rest is added as one more feature, so that samples
    that leave the subspace of the data do not go unnoticed. Events of no more coordinates than that are taken as they are.
    """
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    flat, _ = _flat(data, data, least=1)
    if flat.shape[1] <= components:
        return lambda x: x.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    if len(flat) < flat.shape[1]:  # the smaller of the two matrices that share their eigenvalues
        values, vectors = torch.linalg.eigh(centred @ centred.mT)
        basis = centred.mT @ vectors
    else:
        values, basis = torch.linalg.eigh(centred.mT @ centred)
    kept = values > 1e-12 * values[-1]
    basis = torch.nn.functional.normalize(basis[:, kept][:, -components:], dim=0)

    def features(x: Tensor) -> Tensor:
        x = x.flatten(1).double() - mean.to(x.device)
        part = x @ basis.to(x.device)
        rest = (x.square().sum(1) - part.square().sum(1)).clamp_min(0).sqrt()
        return torch.cat([part, rest[:, None]], dim=1)

    return features


def _covered(points: Tensor, by: Tensor, k: int) -> float:
    """The share of ``points`` that lie in a ball around one of ``by`` that reaches to its k-th nearest neighbour (Eq. 1)."""
    exact = "donot_use_mm_for_euclid_dist"  # the distance of equal points is 0, which a radius may be too
    radii = by.new_empty(len(by))
    for rows in _blocks(by, by):
        distances = torch.cdist(by[rows], by, compute_mode=exact)
        distances[torch.arange(len(rows)), rows] = torch.inf  # a point is not its own neighbour
        radii[rows] = distances.kthvalue(k, dim=1).values
    inside = [(torch.cdist(points[rows], by, compute_mode=exact) <= radii).any(1) for rows in _blocks(points, by)]
    return torch.cat(inside).double().mean().item()


def _blocks(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Indices of ``a``, so many at a time that their distances to ``b`` fit into ``BLOCK``."""
    yield from torch.arange(len(a), device=a.device).split(max(1, BLOCK // len(b)))


def _flat(a: Tensor, b: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of events of one shape as float64 matrices on the device of the first."""
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < least:
        few = "" if least == 1 else f", at least {least} in each"
        raise ValueError(f"expected two sets of events of one shape{few}, got {tuple(a.shape)} and {tuple(b.shape)}")
    return a.flatten(1).double(), b.flatten(1).to(a.device).double()
