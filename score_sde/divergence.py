r"""The divergence of a vector field, together with its value: one forward pass, then vector-Jacobian products.

For f: R^D -> R^D with Jacobian J, the divergence is tr J.

    exact       sum_i e_i^T J e_i: D products, in chunks
    hutchinson  the mean of v^T J v over m probes v with E[v v^T] = I (Hutchinson 1990; Grathwohl et al. 2019, Eq. 8):
                m products. S being the symmetric part of J and S0 = S - (tr S / D) I, its variance is
                    Rademacher   2 / m sum_{i != j} S_ij^2
                    Gaussian     2 / m sum_{i, j} S_ij^2
                    orthogonal   2 / m D (D - m) / ((D - 1) (D + 2)) sum_{i, j} (S0)_ij^2, nothing at m = D
    hutch++     tr(Q^T J Q) exactly, Q an orthonormal basis of the image of a few random vectors under J^T, and
                Hutchinson's estimate of the rest (Meyer et al. 2021, Algorithm 1)

Orthogonal probes are sqrt(D) times the columns of a Haar-distributed orthonormal frame, each of them uniform on the
sphere of radius sqrt(D). Their estimate is D / m tr(P S), P being a uniformly distributed projection of rank m. Every
rotation leaves its law unchanged, so E[P_ij P_kl] = a d_ij d_kl + b (d_ik d_jl + d_il d_jk), and tr P = tr P^2 = m
give b = m (D - m) / (D (D - 1) (D + 2)): the variance is (D / m)^2 2 b |S0|^2, smaller by (D - m) / (D - 1) than that
of m independent probes from the sphere.

Hutch++ rests on tr J = tr(Q^T J Q) + tr(P J P), P = I - Q Q^T, which holds for every orthonormal Q. A backward pass
gives v^T J, that is J^T v, so the algorithm is run on J^T, whose trace is the same.

The samples of a batch must not influence one another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeGuard

import torch
from torch import Tensor

from score_sde.inputs import whole
from score_sde.tables import require_name
from score_sde.tensors import SampleNoise, sum_event

Field = Callable[[Tensor], Tensor]


class Divergence(Protocol):
    """Value and divergence of a field at a batch of points; ``str()`` says how."""

    @property
    def estimates(self) -> int:
        """Number of separate estimates, k."""
        ...

    def draw(self, noise: SampleNoise) -> Tensor | None:
        """Whatever random numbers are needed, drawn once for a whole trajectory."""
        ...

    def __call__(self, field: Field, x: Tensor, probes: Any) -> tuple[Tensor, Tensor, int]:
        """The field at ``x`` ``(B, *D)``, estimates of its divergence ``(k, B)``, and the number of vector-Jacobian products.

        ``probes`` is what ``draw`` gave. The divergence is the mean of the k estimates. Where autograd is on, all of it can be
        differentiated once more.
        """
        ...

    def variance(self, estimates: Tensor, dim: int) -> Tensor | None:
        """Variance of the mean of ``estimates`` ``(k, B)``, or of what they were integrated to, ``(B,)``.

        ``dim`` is the number of coordinates. None where a single estimate says nothing of its error.
        """
        ...


class ProbedDivergence(Divergence, Protocol):
    """The optional part: an estimate whose variance falls with a number of probes, which can be chosen."""

    @property
    def probes(self) -> int: ...

    def with_probes(self, probes: int) -> Self:
        """The same estimate with another number of probes."""
        ...


def takes_probes(divergence: Divergence) -> TypeGuard[ProbedDivergence]:
    """Whether a divergence has the optional part."""
    return hasattr(divergence, "with_probes")


@dataclass(frozen=True)
class ExactDivergence:
    """The trace itself.

    Args:
        chunk: number of coordinates differentiated at once; by default as many as keep a chunk below 2^14 numbers.
    """

    chunk: int | None = None

    def __post_init__(self):
        if self.chunk is not None:
            whole("chunk", self.chunk, 1)

    def __str__(self) -> str:
        return "the exact trace"

    @property
    def estimates(self) -> int:
        return 1

    def draw(self, noise: SampleNoise) -> None:
        return None

    def __call__(self, field: Field, x: Tensor, probes: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        value, x = _with_graph(field, x)
        batch, dim = x.shape[0], x[0].numel()
        chunk = self.chunk or max(1, 2**14 // x.numel())
        trace = value.new_zeros(1, batch)
        for start in range(0, dim, chunk):
            index = torch.arange(start, min(start + chunk, dim), device=x.device)
            basis = torch.nn.functional.one_hot(index, dim).to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            rows = _products(value, x, basis)
            trace = trace + rows.reshape(len(index), batch, dim)[torch.arange(len(index), device=x.device), :, index].sum(0)
        return _result(value), trace, dim

    def variance(self, estimates: Tensor, dim: int) -> Tensor:
        return torch.zeros_like(estimates[0])


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate from random probes; its variance is in the module's docstring.

    Args:
        probes: number of probes, m; ``orthogonal`` ones are at most D.
        distribution: ``rademacher``, ``gaussian`` or ``orthogonal``.
    """

    probes: int = 1
    distribution: str = "rademacher"

    def __post_init__(self):
        whole("probes", self.probes, 1)
        require_name("distribution", self.distribution, PROBES)

    def __str__(self) -> str:
        return f"{self.probes} {PROBES[self.distribution]} probe{'s' * (self.probes > 1)} (Hutchinson)"

    def with_probes(self, probes: int) -> Self:
        """The same estimate with another number of probes."""
        return replace(self, probes=probes)

    @property
    def estimates(self) -> int:
        return self.probes

    def draw(self, noise: SampleNoise) -> Tensor:
        """The probes, ``(m, B, *D)``.

        Raises:
            ValueError: more orthogonal probes are asked for than there are coordinates.
        """
        dim = math.prod(noise.event)
        self._require_room(dim)
        draw = noise.rademacher if self.distribution == "rademacher" else noise.normal
        probes = torch.stack([draw() for _ in range(self.probes)])
        return math.sqrt(dim) * _orthonormal(probes) if self.distribution == "orthogonal" else probes

    def from_normal(self, normal: Tensor) -> Tensor:
        """Probes made of standard normal numbers, both ``(m, B, *D)``.

        Raises:
            ValueError: there are more orthogonal probes than coordinates.
        """
        if self.distribution == "gaussian":
            return normal
        if self.distribution == "rademacher":
            return torch.ones_like(normal).copysign(normal)
        dim = normal[0, 0].numel()
        self._require_room(dim)
        return math.sqrt(dim) * _orthonormal(normal)

    def _require_room(self, dim: int) -> None:
        if self.distribution == "orthogonal" and self.probes > dim:
            raise ValueError(f"at most {dim} probes can be orthogonal in {dim} dimensions, got {self.probes}")

    def __call__(self, field: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor, int]:
        value, x = _with_graph(field, x)
        return _result(value), _quadratic_forms(value, x, probes), len(probes)

    def variance(self, estimates: Tensor, dim: int) -> Tensor | None:
        """The estimates of orthogonal probes exclude one another: with C the variance of one, their covariance is
        -C / (D - 1), since at m = D their sum is the trace, and the variance of their mean is (1 - m / D) / m times the
        expectation of their sample variance."""
        count = len(estimates)
        if self.distribution == "orthogonal":
            return _variance_of_mean(estimates, 1 - count / dim) if count < dim else torch.zeros_like(estimates[0])
        return _variance_of_mean(estimates)


@dataclass(frozen=True)
class HutchPlusPlus:
    """Hutch++: the trace on a subspace where J is large, and Hutchinson's estimate of the rest (Meyer et al. 2021).

    Algorithm 1 on J^T: of m products, k = m // 3 give J^T S for a random sketch S, and its QR decomposition gives Q
    ``(D, k)``; k more give tr(Q^T J Q); the other m - 2 k give the mean of g^T P J P g over random signs g, with
    P = I - Q Q^T. A Jacobian of rank at most k is traced exactly. Given Q the variance is
    2 / (m - 2 k) sum_{i != j} R_ij^2, R = P (J + J^T) / 2 P.

    It pays where a few singular values of J dominate. Where J is close to a multiple of I, as the Jacobian of a score is
    under much noise, it does worse than ``Hutchinson``: Rademacher or orthogonal probes have no variance on such a
    part, whereas here |P g|^2 varies with g.

    S and the signs are drawn once for a trajectory, but Q follows J from point to point. It is a function of the state
    and of S alone, and g is independent of both, so the estimate is unbiased at every point. Along a trajectory, with S
    and g fixed, the integrand is as smooth as J wherever J^T S has full rank. S is Gaussian, where the algorithm has
    signs, so that this fails only where J itself has a rank below k, and there the trace is exact whatever completes Q.
    Two columns of signs are parallel with probability 2^(1 - D): Q then hangs on rounding errors and the integrand
    jumps, at which an adaptive solver gives up.

    Args:
        probes: number of vector-Jacobian products, m, at least 3 and preferably a multiple of it. From m = D on the exact
            trace costs no more.
    """

    probes: int = 3

    def __post_init__(self):
        whole("probes", self.probes, 1)
        if self.probes < 3:
            raise ValueError(f"Hutch++ needs at least 3 probes, a third of them for its subspace, got {self.probes}")

    def __str__(self) -> str:
        return f"{self.probes} probes (Hutch++)"

    def with_probes(self, probes: int) -> Self:
        """The same estimate with another number of probes."""
        return replace(self, probes=probes)

    @property
    def estimates(self) -> int:
        return self.probes - 2 * (self.probes // 3)

    def draw(self, noise: SampleNoise) -> Tensor:
        """The sketch and the probes of the remainder, ``(m - k, B, *D)``, in this order.

        Raises:
            ValueError: the subspace would have more dimensions than there are.
        """
        rank, dim = self.probes // 3, math.prod(noise.event)
        if rank > dim:
            raise ValueError(f"Hutch++ takes fewer than {3 * dim + 3} probes in {dim} dimensions, got {self.probes}")
        sketch = [noise.normal() for _ in range(rank)]
        return torch.stack(sketch + [noise.rademacher() for _ in range(self.probes - 2 * rank)])

    def __call__(self, field: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor, int]:
        value, x = _with_graph(field, x)
        rank = self.probes // 3
        basis = _orthonormal(_one_by_one(value, x, probes[:rank]))
        rest = probes[rank:] - _project(probes[rank:], basis)
        vectors = torch.cat([basis, rest])
        forms = _quadratic_forms(value, x, vectors)
        return _result(value), forms[:rank].sum(0) + forms[rank:], rank + len(vectors)

    def variance(self, estimates: Tensor, dim: int) -> Tensor | None:
        """That of the signs; the subspace, common to all estimates, adds none: whatever it is, the estimate is unbiased."""
        return _variance_of_mean(estimates)


@dataclass(frozen=True, eq=False)
class GivenProbes:
    """Hutchinson's estimate from probes that are given, so that a result can be compared with another program's.

    Args:
        values: the probes ``(m, B, *D)``, of one batch.
    """

    values: Tensor

    def __str__(self) -> str:
        return f"{len(self.values)} given probe{'s' * (len(self.values) > 1)} (Hutchinson)"

    @property
    def estimates(self) -> int:
        return len(self.values)

    def draw(self, noise: SampleNoise) -> Tensor:
        """The given probes.

        Raises:
            ValueError: they are not of the shape of the batch.
        """
        shape = (len(noise.generators), *noise.event)
        if self.values.shape[1:] != shape:
            raise ValueError(
                f"the probes must have shape (m, *{shape}), m of them for each sample, got {tuple(self.values.shape)}"
            )
        return self.values

    __call__ = Hutchinson.__call__

    def variance(self, estimates: Tensor, dim: int) -> Tensor | None:
        """As of independent probes."""
        return _variance_of_mean(estimates)


def _with_graph(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """The field at ``x`` and the point itself, with the graph between them; a point that has a graph already keeps it."""
    point = x if torch.is_grad_enabled() and x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        return field(point), point


def _result(value: Tensor) -> Tensor:
    return value if torch.is_grad_enabled() else value.detach()


def _variance_of_mean(estimates: Tensor, factor: float = 1.0) -> Tensor | None:
    return factor * estimates.var(0) / len(estimates) if len(estimates) > 1 else None


def _products(value: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T J for each of ``vectors`` ``(k, B, *D)``: by one batched backward pass, or one by one where batches fail."""
    twice = torch.is_grad_enabled()
    try:
        (products,) = torch.autograd.grad(value, x, vectors, retain_graph=True, create_graph=twice, is_grads_batched=True)
        return products
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an operation without a batching rule says so in many ways; any other error comes again
        return _one_by_one(value, x, vectors)


def _one_by_one(value: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T J for each of ``vectors`` ``(k, B, *D)``, by as many backward passes; the graph is kept."""
    twice = torch.is_grad_enabled()
    return torch.stack([torch.autograd.grad(value, x, v, retain_graph=True, create_graph=twice)[0] for v in vectors])


def _quadratic_forms(value: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T J v for each of ``vectors`` ``(k, B, *D)``: ``(k, B)``. The graph is freed by the last of them, if not needed."""
    twice, forms = torch.is_grad_enabled(), []
    for i, vector in enumerate(vectors):
        keep = twice or i + 1 < len(vectors)
        (product,) = torch.autograd.grad(value, x, vector, retain_graph=keep, create_graph=twice)
        forms.append(sum_event(product * vector))
    return torch.stack(forms)


def _columns(vectors: Tensor) -> Tensor:
    """Vectors ``(k, B, *D)`` as the columns of one matrix per sample, ``(B, D, k)``."""
    return vectors.flatten(2).permute(1, 2, 0)


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis, for each sample, of the span of ``vectors`` ``(k, B, *D)``, k <= D, in the same shape.

    The diagonal of R is made positive: Q is then unique, hence Haar-distributed for Gaussian vectors (Mezzadri 2007,
    Section 5), and a smooth function of the vectors while they are independent.
    """
    q, r = torch.linalg.qr(_columns(vectors))
    diagonal = r.diagonal(dim1=1, dim2=2)
    q = q * torch.ones_like(diagonal).copysign(diagonal).unsqueeze(1)
    return q.permute(2, 0, 1).reshape(vectors.shape)


def _project(vectors: Tensor, basis: Tensor) -> Tensor:
    """Q Q^T v for each of ``vectors`` ``(k, B, *D)``, sample by sample, Q being the ``basis`` ``(j, B, *D)``."""
    q = _columns(basis)
    return (q @ (q.mT @ _columns(vectors))).permute(2, 0, 1).reshape(vectors.shape)


def as_divergence(divergence: str | Divergence, probes: int | None = None) -> Divergence:
    """A divergence from its name, or itself.

    Args:
        divergence: ``exact``; ``hutchinson``, ``hutchinson_gaussian`` or ``hutchinson_orthogonal``, with ``probes``
            probes; ``hutch++``, with ``probes`` vector-Jacobian products, at least 3; or an object.
        probes: by default 1, and 3 for ``hutch++``; None for ``exact`` and for objects, which have their own.

    Raises:
        ValueError: the name is unknown, the number of probes too small, or given where it has no effect.
    """
    if not isinstance(divergence, str):
        if probes is not None:
            raise ValueError(f"probes = {probes} has no effect: the divergence is an object, {divergence}, which has its own")
        return divergence
    require_name("divergence", divergence, DIVERGENCES)
    if divergence == "exact" and probes is not None:
        raise ValueError(f"probes = {probes} has no effect: the divergence is exact, and takes no probes")
    return DIVERGENCES[divergence](*([] if probes is None else [probes]))


PROBES = {"rademacher": "Rademacher", "gaussian": "Gaussian", "orthogonal": "orthogonal"}  # as a sentence has them


def gaussian_probes(probes: int = 1) -> Hutchinson:
    """``Hutchinson`` with Gaussian probes."""
    return Hutchinson(probes, "gaussian")


def orthogonal_probes(probes: int = 1) -> Hutchinson:
    """``Hutchinson`` with orthogonal probes."""
    return Hutchinson(probes, "orthogonal")


DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "exact": ExactDivergence,
    "hutchinson": Hutchinson,
    "hutchinson_gaussian": gaussian_probes,
    "hutchinson_orthogonal": orthogonal_probes,
    "hutch++": HutchPlusPlus,
}
"""Name -> divergence."""
