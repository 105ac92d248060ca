r"""How many levels of noise NCSN needs, and by which Langevin step (Song and Ermon 2020, Techniques 2 and 4).

Around one point, the distance of x from it is about N(sqrt(D) sigma, sigma^2 / 2) in D dimensions. Let gamma be the ratio of
two neighbouring sigmas. A share C = 0.5 of the smaller level should lie within three deviations of the larger (Technique 2):

    Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = C,

and sigmas from sigma_max to sigma_min need 1 + log(sigma_max / sigma_min) / log(gamma) levels. In fewer than 5 dimensions any
ratio overlaps.

Langevin steps are x + h score + sqrt(2 h) z with h = epsilon sigma^2 / sigma_min^2. With e = epsilon / sigma_min^2 and all data
at one point, T of them leave this multiple of the level's variance (Proposition 3):

    (1 - e)^(2 T) (gamma^2 - 2 / (2 - e)) + 2 / (2 - e)

It is at least 1. The epsilon that makes it smallest is Technique 4's. ``AnnealedLangevin`` takes it as snr = sqrt(e / 2).
"""

import math
from statistics import NormalDist

from score_sde.inputs import require_finite, whole


def overlap(dim: int, ratio: float) -> float:
    """The left side of Technique 2 for ``dim`` coordinates and the ratio of two sigmas, above 1."""
    shift, width, below = math.sqrt(2 * dim) * (ratio - 1), 3 * ratio, NormalDist().cdf
    return below(shift + width) - below(shift - width)


def level_ratio(dim: int, wanted: float = 0.5) -> float:
    """The largest ratio of two sigmas that overlap as ``wanted``, between 0 and 1, in ``dim`` coordinates.

    Raises:
        ValueError: there are fewer than 5 coordinates, where every ratio would do, or ``wanted`` is not between 0 and 0.99.
    """
    if whole("dim", dim, 1) < 5:
        raise ValueError(f"the number of levels is no question in fewer than 5 dimensions: all ratios overlap in {dim}")
    if not 0 < wanted < 0.99:
        raise ValueError(f"wanted must lie between 0 and 0.99, got {wanted}")
    low, high = 1.0, 2.0
    while overlap(dim, high) > wanted:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(dim, middle) > wanted else (low, middle)
    return low


def level_count(dim: int, sigma_max: float, sigma_min: float, wanted: float = 0.5) -> int:
    """The number of geometric levels from ``sigma_max`` to ``sigma_min``, 2 at least, that overlap as ``wanted``.

    Raises:
        ValueError: as ``level_ratio``, or the sigmas do not fall.
    """
    require_finite({"sigma_max": sigma_max, "sigma_min": sigma_min})
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return max(2, round(1 + math.log(sigma_max / sigma_min) / math.log(level_ratio(dim, wanted))))


def variance_ratio(step: float, sigma_min: float, ratio: float, steps: int) -> float:
    """The variance that ``steps`` Langevin steps of epsilon = ``step`` leave, as a multiple of the level's."""
    e = step / sigma_min**2
    settled = 2 / (2 - e)
    return (1 - e) ** (2 * steps) * (ratio**2 - settled) + settled


def langevin_step(sigma_min: float, ratio: float, steps: int) -> float:
    """Technique 4: the epsilon of ``steps`` Langevin steps at each level that leaves the least variance.

    Args:
        sigma_min: the last sigma.
        ratio: of neighbouring sigmas, above 1.
        steps: Langevin steps at each level.

    Raises:
        ValueError: ``sigma_min`` is not positive, ``ratio`` not above 1, or there is no step.
    """
    if not sigma_min > 0 or not ratio > 1:
        raise ValueError(f"need sigma_min > 0 and a ratio above 1, got {sigma_min} and {ratio}")
    whole("steps", steps, 1)

    def slope(e: float) -> float:
        settled, kept = 2 / (2 - e), (1 - e) ** (2 * steps)
        return 2 / (2 - e) ** 2 * (1 - kept) - 2 * steps * kept / (1 - e) * (ratio**2 - settled)

    low, high = 0.0, 1.0  # of e, which forgets the state in one step at 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2 * sigma_min**2
