r"""Is one solver better than another? A statistic, and a test on the same latents, that a few samples do not rule.

The error of a sample is its distance from the converged solution. A few latents lie between two basins of the flow. Every
solver of few steps throws them to one side or the other, and their errors are a hundred times those of all others. A root mean
square tells where these few went, and little about the solver. So errors are compared by their logarithms, and the largest and
the smallest are left out:

    L = mean of log e over the rest,      typical error = exp(L).

For two solvers on the same latents, with w_i the logarithms of the errors of sample i, brought to the ends of the rest where
they are outside of it (winsorized), each solver by its own ends, and h the number of samples in the rest (Yuen 1974, in the
form for pairs of Wilcox 2012, Section 5.9),

    (L_b - L_a) / SE,      SE^2 = sum_i (v_i - mean v)^2 / (h (h - 1)),      v_i = w_i(b) - w_i(a),

has nearly Student's distribution with h - 1 degrees of freedom where the two are equally good.
"""

import math
from typing import NamedTuple

import numpy as np

TRIM = (0.25, 0.25)
"""The shares of samples that are left out: those with the smallest errors, and those with the largest."""


class Gain(NamedTuple):
    """By how much the typical error of one solver is below that of another.

    ``log`` is the logarithm of their ratio, positive for a gain; ``stderr`` is its standard error; ``p_value`` is the
    probability of a gain as large as this where there is none.
    """

    log: float
    stderr: float
    p_value: float


def typical(errors: np.ndarray) -> float:
    """The typical one of the errors ``(n,)`` of samples: infinite where one that counts is."""
    return float(np.exp(_rest(np.sort(_logarithms(errors))).mean()))


def gain(errors: np.ndarray, others: np.ndarray) -> Gain:
    """What is gained by a solver with ``errors`` ``(n,)`` over another one with ``others`` ``(n,)`` on the same latents."""
    logarithms = [_logarithms(values) for values in (others, errors)]
    rests = [_rest(np.sort(values)) for values in logarithms]
    means = [rest.mean() for rest in rests]
    if not np.isfinite(means).all():
        log = math.inf if means[1] < means[0] else -math.inf
        return Gain(log, 0.0, 0.0 if log > 0 else 1.0)
    within, count = [np.clip(values, rest[0], rest[-1]) for values, rest in zip(logarithms, rests, strict=True)], len(rests[0])
    stderr = math.sqrt(len(errors) * (within[0] - within[1]).var() / (count * (count - 1)))
    log = float(means[0] - means[1])
    if stderr == 0:
        return Gain(log, 0.0, 0.0 if log > 0 else 1.0)
    from scipy.stats import t as student  # here: it takes long to import

    return Gain(log, stderr, float(student.sf(log / stderr, count - 1)))


def tail(errors: np.ndarray, others: np.ndarray) -> float:
    """How much larger the large errors are than those of another solver, which a typical error does not tell.

    The larger of two ratios: that of the 90 % quantiles and that of the root mean squares, which a few lost samples rule.
    """
    if not np.isfinite(errors).all():
        return math.inf
    measures = (lambda e: np.quantile(e, 0.9), lambda e: np.sqrt(np.mean(e**2)))
    return max(float(measure(errors) / max(measure(others), np.finfo(np.float64).tiny)) for measure in measures)


def _logarithms(errors: np.ndarray) -> np.ndarray:
    """Logarithms of errors; one of 0 counts as the smallest number, NaN as infinite."""
    return np.log(np.maximum(np.nan_to_num(errors, nan=math.inf, posinf=math.inf), np.finfo(np.float64).tiny))


def _rest(rising: np.ndarray) -> np.ndarray:
    """What is left of values in rising order."""
    low, high = (int(share * len(rising)) for share in TRIM)
    return rising[low : len(rising) - high]
