r"""Integrals of interpolating polynomials: the weights of multistep methods.

A function known at nodes q_1 ... q_n is replaced by the polynomial through its values, and what multiplies it under the
integral, the kernel, is known exactly:

    \int_a^b kernel(u) f(u) du  ~  sum_i f(q_i) w_i,   w_i = \int_a^b kernel(u) l_i(u) du,   l_i Lagrange's polynomials.

The integrals are taken by Gauss-Legendre quadrature in float64, whose error is far below that of the interpolation.
"""

from collections.abc import Callable, Sequence

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def lagrange_rule(
    nodes: Sequence[float], start: float, end: float, variable: Callable[[np.ndarray], np.ndarray] = lambda u: u
) -> tuple[np.ndarray, np.ndarray]:
    """Points u ``(Q,)`` from ``start`` to ``end``, and the matrix ``(n, Q)`` that takes a kernel's values there to the weights.

    Args:
        nodes: n different values of the variable in which the polynomials are taken.
        start, end: ends of the integral over u.
        variable: the polynomials' variable as a function of u; u itself by default.
    """
    u = (start + end) / 2 + (end - start) / 2 * _NODES
    q, count = np.asarray(nodes), len(nodes)
    apart = q[:, None] - q[None, :] + np.eye(count)
    factors = (variable(u) - q[:, None]) / apart[:, :, None]  # [i, j]: (u - q_j) / (q_i - q_j)
    factors[np.arange(count), np.arange(count)] = 1.0
    return u, factors.prod(axis=1) * (_WEIGHTS * (end - start) / 2)


def lagrange_weights(
    nodes: Sequence[float],
    start: float,
    end: float,
    kernel: Callable[[np.ndarray], np.ndarray],
    variable: Callable[[np.ndarray], np.ndarray] = lambda u: u,
) -> np.ndarray:
    """Integrals ``(n,)`` from ``start`` to ``end`` of each Lagrange polynomial times ``kernel``, a function of u.

    The other arguments are those of ``lagrange_rule``.
    """
    u, rule = lagrange_rule(nodes, start, end, variable)
    return rule @ kernel(u)
