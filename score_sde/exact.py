r"""A Gaussian mixture and its exact score under any linear SDE: the answer against which everything else is measured.

If x0 ~ sum_k w_k N(m_k, C_k), then x_t ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I). With C_k = U_k diag(l_k) U_k^T,
decomposed once, the density and the score at any t need only the variances alpha^2 l_k + sigma^2 in the eigenbasis:

    log p_t(x) = logsumexp_k [ log w_k - sum_i ( y_ki^2 / v_ki + log(2 pi v_ki) ) / 2 ],   y_k = U_k^T (x - alpha m_k)
    score      = -sum_k r_k U_k (y_k / v_k),   r = softmax of the same terms
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from score_sde.data import Moments
from score_sde.inputs import require_classes, require_states, require_time, whole
from score_sde.sdes import SDE
from score_sde.tensors import SampleNoise, as_time


class GaussianMixture:
    """sum_k w_k N(m_k, C_k) over events of any shape.

    Args:
        means: ``(K, *D)``; their dtype and device are the mixture's.
        covariances: ``(K, d, d)`` with d the number of coordinates, ``(K, *D)`` for diagonal ones, or ``(K,)`` for multiples
            of the identity. A zero variance is allowed, but then only the noised mixture has a density.
        weights: ``(K,)``, non-negative; they are normalized. Equal by default.

    Raises:
        ValueError: a number is NaN, infinite or complex, shapes do not fit, a covariance is not symmetric or has a negative
            eigenvalue, a weight is negative.
    """

    def __init__(
        self,
        means: Tensor | Sequence,
        covariances: Tensor | Sequence,
        weights: Tensor | Sequence | None = None,
    ):
        for name, given in (("means", means), ("covariances", covariances), ("weights", weights)):
            values = torch.as_tensor(() if given is None else given)
            if values.is_complex() or not values.isfinite().all():
                raise ValueError(f"{name} must be finite real numbers, got NaN, infinite or complex ones")
        means = torch.as_tensor(means)
        means = means if means.is_floating_point() else means.to(torch.get_default_dtype())
        if means.ndim < 2:
            raise ValueError(f"means must have shape (K, *D), got {tuple(means.shape)}")
        self.event = tuple(means.shape[1:])
        self.means = means.flatten(1)
        count, dim = self.means.shape
        covariances = torch.as_tensor(covariances).to(means)
        if covariances.shape == (count,):
            variances, basis = covariances[:, None].expand(count, dim), None
        elif covariances.shape == means.shape:
            variances, basis = covariances.flatten(1), None
        elif covariances.shape == (count, dim, dim):
            rounding = 4 * dim * torch.finfo(means.dtype).eps * covariances.abs().amax()
            if (covariances - covariances.mT).abs().max() > rounding:
                raise ValueError("covariances must be symmetric")
            variances, basis = torch.linalg.eigh((covariances + covariances.mT).double() / 2)
            variances = torch.where(variances.abs() <= rounding, 0, variances)
            variances, basis = variances.to(means), basis.to(means)
        else:
            raise ValueError(
                f"covariances must have shape {(count, dim, dim)}, {tuple(means.shape)} or {(count,)}, "
                f"got {tuple(covariances.shape)}"
            )
        if (variances < 0).any():
            raise ValueError("covariances must not have negative eigenvalues")
        weights = means.new_ones(count) if weights is None else torch.as_tensor(weights).to(means)
        if weights.shape != (count,) or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"weights must be {count} non-negative numbers, not all zero")
        self.variances, self.basis, self.weights = variances, basis, weights / weights.sum()

    def score(self, sde: SDE) -> "MixtureScore":
        """The exact score of this mixture under ``sde``."""
        return MixtureScore(self, sde)

    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> "GaussianMixture":
        """The same mixture on another device, in another dtype, or both: ``to("cuda")``, ``to(torch.float64)``."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        other = object.__new__(GaussianMixture)
        other.event = self.event
        for name in ("means", "variances", "basis", "weights"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.to(device=device, dtype=dtype))
        return other

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` ``(B, *D)`` in nats, ``(B,)``.

        Raises:
            ValueError: ``x`` is not such a batch of finite floating-point numbers, or a variance is zero: there is no density.
        """
        require_states("x", x, self.event)
        if (self.variances == 0).any():
            raise ValueError("a variance is zero, so the mixture has no density: ask for that of its noised data, at a time")
        one, zero = self.means.new_ones(()), self.means.new_zeros(())
        return self._terms(x, one, zero)[0].logsumexp(1)

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """``count`` draws, ``(count, *D)``."""
        whole("count", count, 1)
        place = {"device": self.means.device, "dtype": self.means.dtype}
        chosen = SampleNoise(seed, (count, 1), purpose="component", **place).uniform()
        component = torch.searchsorted(self.weights.cumsum(0), chosen[:, 0]).clamp_max(len(self.weights) - 1)
        z = SampleNoise(seed, (count, self.means.shape[1]), purpose="mixture", **place).normal()
        deviation = self.variances[component].sqrt() * z
        if self.basis is not None:
            deviation = torch.einsum("bij,bj->bi", self.basis[component], deviation)
        return (self.means[component] + deviation).reshape(count, *self.event)

    def mean(self) -> Tensor:
        """The mean of the whole mixture, ``(*D)``."""
        return (self.weights @ self.means).reshape(self.event)

    def covariance(self) -> Tensor:
        """The covariance of the whole mixture over flattened events, ``(d, d)``."""
        scaled = torch.diag_embed(self.variances)
        if self.basis is not None:
            scaled = self.basis @ scaled @ self.basis.mT
        deviation = self.means - self.weights @ self.means
        return torch.einsum("k,kij->ij", self.weights, scaled + deviation[:, :, None] * deviation[:, None, :])

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance, as solvers take them."""
        return Moments(self.mean(), self.covariance(), None)

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(w_k N_k(x)) ``(B, K)``, and y and v of the module's derivation ``(B, K, d)``."""
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"expected samples of shape {self.event}, got {tuple(x.shape[1:])}")
        if alpha.ndim and alpha.shape != x.shape[:1]:
            raise ValueError(f"expected one time for each of {len(x)} samples, got the shape {tuple(alpha.shape)}")
        alpha, sigma = (value.reshape(-1, 1, 1) for value in (alpha, sigma))
        y = x.flatten(1)[:, None] - alpha * self.means
        if self.basis is not None:
            y = torch.einsum("kij,bki->bkj", self.basis, y)
        v = alpha**2 * self.variances + sigma**2
        quadratic = (y**2 / v + v.log()).sum(-1) + y.shape[-1] * math.log(2 * math.pi)
        return self.weights.log() - quadratic / 2, y, v


@dataclass(frozen=True, eq=False)
class MixtureScore:
    """The exact score of a ``GaussianMixture`` under an SDE.

    Called with a condition ``cond`` ``(B,)`` of component indices, it is the score of that component alone.
    """

    mixture: GaussianMixture
    sde: SDE

    score_parts: ClassVar[tuple[str, ...]] = ()

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the data."""
        return self.mixture.moments

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample, D."""
        return self.mixture.event

    @property
    def classes(self) -> int:
        """Number of components, of which each is a class."""
        return len(self.mixture.weights)

    @property
    def device(self) -> torch.device:
        return self.mixture.means.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mixture.means.dtype

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            if (
                isinstance(cond, Tensor)
                and cond.is_floating_point()
                and cond.device.type == "cpu"
                and (cond == cond.round()).all()
            ):
                cond = cond.long()  # whole numbers, however they are stored
            require_classes(cond, len(x), self.classes)
        terms, y, v = self.mixture._terms(x, self.sde.alpha(t), self.sde.sigma(t))
        shares = terms.softmax(1) if cond is None else one_hot(cond.long(), terms.shape[1]).to(terms)
        pull = shares[..., None] * y / v
        if self.mixture.basis is not None:
            pull = torch.einsum("kij,bkj->bki", self.mixture.basis, pull)
        return -pull.sum(1).reshape(x.shape)

    def log_prob(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Log-density of x_t in nats, ``(B,)``, at ``x`` ``(B, *D)`` and ``t`` ``(B,)`` or a number in [0, T].

        Raises:
            ValueError: ``x`` is not such a batch of finite floating-point numbers, or a time is outside [0, T].
        """
        require_states("x", x, self.event)
        require_time("t", t, 0.0, self.sde.T)
        t = as_time(t).to(x)
        return self.mixture._terms(x, self.sde.alpha(t), self.sde.sigma(t))[0].logsumexp(1)
