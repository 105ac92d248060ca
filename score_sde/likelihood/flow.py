"""What a likelihood needs along a trajectory: the score and estimates of its divergence, by one pass of the network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from score_sde.divergence import Divergence
from score_sde.score import BoundScore, Counter
from score_sde.sdes import SDE


@dataclass(frozen=True, eq=False)
class Flow:
    """A score bound to its condition, with the probes of one batch."""

    score: BoundScore
    divergence: Divergence
    probes: Tensor | None
    counter: Counter

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def of(self, rows: Tensor) -> "Flow":
        """The same for some samples of the batch, given by their places ``(n,)``."""
        cond = self.score.cond
        score = BoundScore(self.score.score, None if cond is None else cond[rows])
        return Flow(score, self.divergence, None if self.probes is None else self.probes[:, rows], self.counter)

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score ``(B, *D)`` and estimates of its divergence ``(k, B)`` at ``x``; ``t`` is ``()`` or ``(B,)``."""
        value, traces, vjps = self.divergence(lambda point: self.score(point, t), x, self.probes)
        self.counter.vjps += vjps * len(x)
        return value, traces.to(torch.promote_types(traces.dtype, torch.float32))
