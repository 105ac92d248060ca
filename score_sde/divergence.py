r"""The divergence of a vector field, together with its value: one forward pass, then vector-Jacobian products.

For f: R^D -> R^D with Jacobian J, the divergence is tr J.

    exact       sum_i e_i^T J e_i: D products, in chunks
    hutchinson  the mean of v^T J v over m probes v with E[v v^T] = I (Hutchinson 1990; Grathwohl et al. 2019, Eq. 8):
                m products. With Rademacher probes its variance is 2 sum_{i != j} S_ij^2, with Gaussian ones
                2 sum_{i, j} S_ij^2, S being the symmetric part of J.

The samples of a batch must not influence one another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from score_sde.tensors import SampleNoise, sum_event

Field = Callable[[Tensor], Tensor]


class Divergence(Protocol):
    """Value and divergence of a field at a batch of points; ``str()`` says how."""

    def draw(self, noise: SampleNoise) -> Tensor | None:
        """Whatever random numbers are needed, drawn once for a whole trajectory."""
        ...

    def __call__(self, field: Field, x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """The field at ``x`` ``(B, *D)``, its divergence ``(B,)``, and the number of vector-Jacobian products."""
        ...


@dataclass(frozen=True)
class ExactDivergence:
    """The trace itself.

    Args:
        chunk: number of coordinates differentiated at once; by default as many as keep a chunk below 2^14 numbers.
    """

    chunk: int | None = None

    def __post_init__(self):
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    def __str__(self) -> str:
        return "the exact trace"

    def draw(self, noise: SampleNoise) -> None:
        return None

    def __call__(self, field: Field, x: Tensor, probes: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x)
        batch, dim = x.shape[0], x[0].numel()
        chunk = self.chunk or max(1, 2**14 // x.numel())
        trace = x.new_zeros(batch)
        for start in range(0, dim, chunk):
            index = torch.arange(start, min(start + chunk, dim), device=x.device)
            basis = torch.nn.functional.one_hot(index, dim).to(x).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            rows = _products(value, x, basis)
            trace += rows.reshape(len(index), batch, dim)[torch.arange(len(index)), :, index].sum(0)
        return value.detach(), trace, dim


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate from random probes.

    Args:
        probes: number of probes, m.
        distribution: ``rademacher`` or ``gaussian``.
    """

    probes: int = 1
    distribution: str = "rademacher"

    def __post_init__(self):
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(f"unknown distribution {self.distribution!r}; choose one of rademacher, gaussian")

    def __str__(self) -> str:
        return f"{self.probes} {self.distribution.capitalize()} probe{'s' * (self.probes > 1)} (Hutchinson)"

    def draw(self, noise: SampleNoise) -> Tensor:
        """The probes, ``(m, B, *D)``."""
        draw = noise.rademacher if self.distribution == "rademacher" else noise.normal
        return torch.stack([draw() for _ in range(self.probes)])

    def __call__(self, field: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor, int]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x)
        products = torch.stack(
            [
                sum_event(torch.autograd.grad(value, x, probe, retain_graph=i + 1 < len(probes))[0] * probe)
                for i, probe in enumerate(probes)
            ]
        )
        return value.detach(), products.mean(0), len(probes)


@dataclass(frozen=True, eq=False)
class GivenProbes:
    """Hutchinson's estimate from probes that are given, so that a result can be compared with another program's.

    Args:
        values: the probes ``(m, B, *D)``, of one batch.
    """

    values: Tensor

    def __str__(self) -> str:
        return f"{len(self.values)} given probe{'s' * (len(self.values) > 1)} (Hutchinson)"

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


def _products(value: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T J for each of ``vectors`` ``(k, B, *D)``: by one batched backward pass, or one by one where batches fail."""
    try:
        (products,) = torch.autograd.grad(value, x, vectors, retain_graph=True, is_grads_batched=True)
        return products
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    return torch.stack([torch.autograd.grad(value, x, vector, retain_graph=True)[0] for vector in vectors])


def as_divergence(divergence: str | Divergence, probes: int = 1) -> Divergence:
    """A divergence from its name, ``exact``, ``hutchinson`` or ``hutchinson_gaussian`` with ``probes`` probes, or itself.

    Raises:
        ValueError: the name is unknown.
    """
    if not isinstance(divergence, str):
        return divergence
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; choose one of {', '.join(DIVERGENCES)}")
    return DIVERGENCES[divergence](probes)


DIVERGENCES: dict[str, Callable[[int], Divergence]] = {
    "exact": lambda probes: ExactDivergence(),
    "hutchinson": lambda probes: Hutchinson(probes),
    "hutchinson_gaussian": lambda probes: Hutchinson(probes, "gaussian"),
}
