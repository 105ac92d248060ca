"""Small tensor operations that every other module shares.

A batch is ``(B, *D)``: one batch dimension, then any number of event dimensions. Times are ``(B,)``, one per sample, or
a 0-dimensional tensor shared by all of them. Nothing here, nor anywhere in the core, assumes how long ``D`` is.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Condition = Tensor | Mapping[str, Tensor]
"""What a model is told of each sample: a tensor ``(B, ...)``, such as class indices, or several by their names."""

State = dict[str, Tensor]
"""What has been learned on the way, by name."""


def condition_of(cond: Condition | None, rows: Tensor) -> Condition | None:
    """What is told of some of the samples, given by their places ``(n,)``."""
    if isinstance(cond, Mapping):
        return {name: told[rows] for name, told in cond.items()}
    return None if cond is None else cond[rows]


def as_time(t: Tensor | float) -> Tensor:
    """``t`` as a tensor; a Python number becomes a 0-dimensional float64 one, which mixes with any device and dtype."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")


def batch_time(t: Tensor | float, x: Tensor) -> Tensor:
    """``t`` as ``(B,)`` beside ``x`` ``(B, *D)``, in its dtype or float32: the form in which a score takes its time."""
    precise = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(t, Tensor) or (t.ndim == 0 and t.device.type == "cpu" and not t.requires_grad):
        one = torch.full((1,), float(t), dtype=precise, device=x.device)  # a copy to a GPU would be waited for
        return one.expand(x.shape[0])
    return torch.as_tensor(t, dtype=precise, device=x.device).expand(x.shape[0])


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Shape ``t``, ``()`` or ``(B,)``, so that it broadcasts over the event dimensions of ``x`` ``(B, *D)``.

    Raises:
        ValueError: ``t`` is neither a scalar nor one value per sample of ``x``.
    """
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(f"expected one value for each of {x.shape[0]} samples, got a tensor of shape {tuple(t.shape)}")
    return t.reshape(-1, *[1] * (x.ndim - 1))


def sum_event(x: Tensor) -> Tensor:
    """Sum ``(B, *D)`` over its event dimensions: ``(B,)``."""
    return x.reshape(x.shape[0], -1).sum(dim=1)


def mean_event(x: Tensor) -> Tensor:
    """Average ``(B, *D)`` over its event dimensions: ``(B,)``."""
    return x.reshape(x.shape[0], -1).mean(dim=1)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, one or more: what ``sum`` gives, whose type is a tensor for certain."""
    each = iter(terms)
    return sum(each, 0 + next(each))


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed from several numbers and words, so that no two streams of a program share their randomness."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with ``derive_seed(*parts)``."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


class SampleNoise:
    """Random numbers for a batch in which sample ``i`` draws from a generator of its own, seeded by ``(seed, i)``.

    The numbers of a sample therefore do not depend on how many others are in its batch. Normal draws are made several
    at a time where the event is small; how many depends on the event alone, never on the batch.

    Args:
        seed: the run's seed, a non-negative integer.
        shape: ``(B, *D)``.
        first: index of the first sample, so that a long run can be cut into batches, or the index of each sample.
        purpose: a word that separates this stream from others of the same seed.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        *,
        first: int | Sequence[int] = 0,
        purpose: str = "noise",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        batch, *event = shape
        self.event, self.device, self.dtype = tuple(event), device, dtype
        indices = range(first, first + batch) if isinstance(first, int) else first
        if len(indices) != batch:
            raise ValueError(f"first must be an index, or one for each of {batch} samples, got {len(indices)}")
        self._keys = [(seed, purpose, int(i)) for i in indices]
        self.block = max(1, min(64, 1024 // max(1, math.prod(event))))
        self.drawn: list[Tensor] = []

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One generator for each sample, made when a number is first asked for."""
        return [generator(*key, device=self.device) for key in self._keys]

    def normal(self) -> Tensor:
        """Standard normal noise ``(B, *D)``."""
        if not self.drawn:
            self.drawn = list(reversed(self._stack(torch.randn, self.block).unbind(1)))
        return self.drawn.pop()

    def uniform(self) -> Tensor:
        """Uniform noise in [0, 1), ``(B, *D)``."""
        return self._stack(torch.rand, 1)[:, 0]

    def rademacher(self) -> Tensor:
        """Independent signs, +1 or -1, ``(B, *D)``."""
        return torch.where(self.uniform() < 0.5, -1.0, 1.0).to(self.dtype)

    def _stack(self, draw: Callable[..., Tensor], block: int) -> Tensor:
        place = {"device": self.device, "dtype": self.dtype}
        if not self.generators:
            return torch.empty(0, block, *self.event, **place)
        return torch.stack([draw(block, *self.event, generator=g, **place) for g in self.generators])


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of torch on the CPU, or of a GPU says that there is not enough memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)


_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "out of memory")
