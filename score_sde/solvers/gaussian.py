r"""The Gaussian reference: the flow of N(m, C) in closed form, the rest interpolated.

If the data were N(m, C), C = U diag(l) U^T, the probability-flow ODE of any linear SDE would have the solution

    y / sqrt(l + rho^2) = constant,      y = U^T (x / alpha - m),   rho = sigma / alpha,

coordinate by coordinate. For other data, with R what the denoiser D = E[x0 | x] has beyond that Gaussian's own,

    d/dlambda [ y / sqrt(l + rho^2) ] = R / sqrt(l + rho^2),   R = U^T (D - m) - l / (l + rho^2) y,   lambda = -log rho.

(Insert the ODE dy/dlambda = U^T (D - m) - y, and drho/dlambda = -rho.) In units of what is uncertain there, R is

    F = R sqrt(l + rho^2) / (rho sqrt(l)),

which for l = sigma_data^2 is what a network with EDM's preconditioning predicts (Karras et al. 2022, Eq. 7). It stays of order
one at every noise level and in every direction; a polynomial in lambda through its last values is put in place of R:

    z_s = z_t + sum_i w_i F_i,   w_i = \int l_i(lambda) rho / (l + rho^2) dlambda,   z = y / sqrt(l + rho^2)   (no sqrt(l)),

with weights of its own in each direction, that is by quadrature. Where l = 0 this interpolates x0, as DPM-Solver++ does, and
where l is infinite the noise, as DEIS: each direction of the data goes from the one to the other where its own noise level is
rho = sqrt(l).

It is worth its while where the score is close to that of the data, whose covariance then tells most of it. A network that is
far from its data's Gaussian at high noise, after little training, gains nothing by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.data import Moments
from score_sde.inputs import require_states
from score_sde.score import BoundScore, Score, moments_of, sigma_data_of
from score_sde.sdes import SDE
from score_sde.solvers.interpolation import lagrange_rule
from score_sde.solvers.level import Level
from score_sde.solvers.multistep import Multistep, MultistepHistory, Node, combine
from score_sde.tables import require_name

REFERENCES = ("data", "isotropic", "unit")


class Reference(NamedTuple):
    """N(m, C) with C diagonal in a basis: that of ``basis`` ``(d, d)``, of Fourier where ``fourier``, else the given one.

    ``mean`` is ``(*D)`` and ``variances`` ``(d,)``, in the order of the flattened coefficients.
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None = None
    fourier: bool = False

    def coefficients(self, x: Tensor) -> Tensor:
        """The coefficients ``(B, d)`` of ``x`` ``(B, *D)``, complex for Fourier's."""
        x = x.to(self.mean.dtype)
        if self.fourier:
            return torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho").flatten(1)
        return x.flatten(1) if self.basis is None else _product(x.flatten(1), self.basis)

    def event(self, y: Tensor) -> Tensor:
        """The events ``(B, *D)`` of coefficients ``(B, d)``."""
        if self.fourier:
            shaped = y.reshape(-1, *self.mean.shape)
            return torch.fft.ifftn(shaped, dim=tuple(range(2, shaped.ndim)), norm="ortho").real
        return (y if self.basis is None else _product(y, self.basis.mT)).reshape(-1, *self.mean.shape)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in their own precision, also where a network runs in a lower one."""
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


@lru_cache(maxsize=2)
def _of_moments(moments: Moments, dtype: torch.dtype, device: torch.device) -> Reference:
    """The reference with these moments, decomposed once."""
    with torch.inference_mode(False), torch.no_grad():
        mean = moments.mean.to(device, dtype)
        if moments.covariance is not None:
            variances, basis = torch.linalg.eigh(moments.covariance.double())
            return Reference(mean, variances.clamp_min(0).to(device, dtype), basis.to(device, dtype))
        if moments.spectrum is not None:
            variances = moments.spectrum.double().flatten()
            return Reference(mean, variances.clamp_min(0).to(device, dtype), fourier=True)
    raise ValueError("the moments of a reference need a covariance or a spectrum")


@lru_cache(maxsize=1024)
def _rule(
    nodes: tuple[float, ...], start: float, end: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Noise levels rho ``(Q, 1)`` from ``start`` to ``end`` and the rule ``(n, Q)`` of ``lagrange_rule``, placed once."""
    u, rule = lagrange_rule(nodes, start, end)
    with torch.inference_mode(False):
        rho, rule = (torch.from_numpy(value).to(device, dtype, non_blocking=True) for value in (np.exp(-u)[:, None], rule))
    return rho, rule


def match_moments(samples: Tensor) -> Moments:
    """Moments of ``samples`` ``(N, *D)`` in model coordinates, for a model whose training data is not at hand.

    Draw a few hundred with any solver, and give what this returns as ``reference``. The covariance is shrunk towards a
    multiple of the identity, by as much as the number of samples asks for (Ledoit and Wolf 2004).
    """
    from sklearn.covariance import ledoit_wolf

    require_states("samples", samples)
    flat = samples.detach().flatten(1).double().cpu().numpy()
    covariance, _ = ledoit_wolf(flat)
    return Moments(samples.detach().double().mean(0), torch.from_numpy(covariance).to(samples.device), None)


@dataclass(frozen=True, eq=False, kw_only=True)
class GaussianHistory(MultistepHistory):
    """What a multistep method keeps, and the Gaussian around which it steps."""

    reference: Reference


@dataclass(frozen=True)
class GaussianReference(Multistep):
    """Multistep method around the flow of a Gaussian, of order p + 1 (p without corrector), one evaluation a step.

    Args:
        steps, grid, p, lower_order_first, lower_order_final: as in ``Multistep``.
        corrector: whether to correct a step with the evaluation at its end.
        reference: the Gaussian. ``data``: moments that come with the score (a run stores those of its training data), and
            where it has none, ``isotropic``: N(0, sigma_data^2 I), with the score's sigma_data or 0.5. ``unit``: N(0, I).
            Or ``Moments`` of one's own, as ``match_moments`` takes them from samples of the model.
    """

    corrector: bool = True
    reference: str | Moments = "data"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.reference, str):
            require_name("reference", self.reference, REFERENCES)

    @property
    def corrected(self) -> bool:
        return self.corrector

    def begin(self, score: BoundScore, x: Tensor, steps: int) -> GaussianHistory:
        return GaussianHistory(left=steps, reference=self._reference(score.score, x))

    def _reference(self, score: Score, x: Tensor) -> Reference:
        dtype = torch.promote_types(x.dtype, torch.float32)
        moments = moments_of(score) if self.reference == "data" else self.reference
        if isinstance(moments, Moments):
            if moments.mean.shape != x.shape[1:]:
                raise ValueError(f"the reference is of events {tuple(moments.mean.shape)}, and these are {tuple(x.shape[1:])}")
            return _of_moments(moments, dtype, x.device)
        variance = 1.0 if self.reference == "unit" else sigma_data_of(score) ** 2
        zero = torch.zeros(x.shape[1:], dtype=dtype, device=x.device)
        return Reference(zero, torch.full((1,), variance, dtype=dtype, device=x.device))

    def read(self, score: BoundScore, x: Tensor, level: Level, history: GaussianHistory) -> tuple[Tensor, Tensor]:
        reference = history.reference
        rho = level.noise_level
        gradient = reference.coefficients(score(x, level.t))
        y = reference.coefficients(x / level.alpha - reference.mean)
        root = (reference.variances + rho**2).sqrt()
        return y / root, rho / root * y + rho * level.alpha * root * gradient

    def weights(self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: GaussianHistory) -> Tensor:
        variances = history.reference.variances
        nodes = tuple(level.half_log_snr for level in levels)
        rho, rule = _rule(nodes, start.half_log_snr, end.half_log_snr, variances.dtype, variances.device)
        return _product(rule, rho / (variances + rho**2))

    def advance(
        self, z: Tensor, weights: Tensor, nodes: Sequence[Node], start: Level, end: Level, history: GaussianHistory
    ) -> Tensor:
        reference = history.reference
        y = (z + combine(weights, nodes)) * (reference.variances + end.noise_level**2).sqrt()
        return end.alpha * (reference.event(y) + reference.mean)
