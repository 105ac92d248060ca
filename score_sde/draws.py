r"""The random numbers of a training step: a stream for each purpose.

A stream is a generator that is seeded by (run seed, step, purpose). So the order in which a step asks for its numbers
does not matter, and whoever asks again gets the same numbers: a step can be repeated, and a message can name its times.

A stream holds the numbers of the global batch, of which a process takes the rows of its own samples. So a step has the
same numbers on one process and on many.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.sdes import SDE
from score_sde.tensors import State
from score_sde.time_sampling import TimeRule


class Draws:
    """The random numbers of one step.

    Args:
        seed: the run's seed, a non-negative integer.
        step: the number of the step.
        count: samples in the global batch.
        rows: the samples of this process, all of them by default.
        device: where the numbers are drawn.

    >>> draws = Draws(0, step=3, count=4)
    >>> torch.equal(draws.normal("noise", (4, 2)), draws.normal("noise", (4, 2)))
    True
    >>> torch.equal(Draws(0, 3, 4, rows=slice(2, 4)).normal("noise", (2, 2)), draws.normal("noise", (4, 2))[2:])
    True
    """

    def __init__(self, seed: int, step: int, count: int, *, rows: slice = slice(None), device: torch.device | str = "cpu"):
        self.seed, self.step, self.count, self.rows, self.device = seed, step, count, rows, device
        self.own = len(range(count)[rows])

    def seed_of(self, purpose: str) -> int:
        """The seed of the stream of this purpose, 63 bits."""
        digest = hashlib.blake2b(f"{self.seed} {self.step} {purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, purpose: str) -> torch.Generator:
        """The generator of this purpose, at its beginning."""
        return torch.Generator(self.device).manual_seed(self.seed_of(purpose))

    def uniform(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), float32, of ``shape`` ``(B, ...)`` for the ``B`` samples of this process.

        Raises:
            ValueError: ``B`` is another number.
        """
        draw = torch.rand(self._of_all(purpose, shape), generator=self.generator(purpose), device=self.device)
        return draw[self.rows]

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32, of ``shape`` ``(B, ...)`` for the ``B`` samples of this process.

        Raises:
            ValueError: ``B`` is another number.
        """
        draw = torch.randn(self._of_all(purpose, shape), generator=self.generator(purpose), device=self.device)
        return draw[self.rows]

    def times(self, rule: TimeRule, sde: SDE, state: State | None = None) -> tuple[Tensor, Tensor]:
        """The times of this process's samples by a rule for the global batch, and their weights, both ``(B,)``.

        ``state`` is what the rule knows, by default what it knows before training.
        """
        t, weight = rule.sample(sde, self.count, self.generator("times"), state)
        return t[self.rows], weight[self.rows]

    def _of_all(self, purpose: str, shape: Sequence[int]) -> tuple[int, ...]:
        if shape[0] != self.own:
            raise ValueError(f"{purpose}: expected a shape of {self.own} samples, got {tuple(shape)}")
        return self.count, *shape[1:]
