"""The order in which samples are trained on."""

import torch
from torch import Tensor

from score_sde.tensors import generator


class EpochOrder:
    """Rows of ``count`` samples without end: all of them in a new order every epoch, drawn from (seed, epoch)."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._latest: tuple[int, Tensor] | None = None

    def rows(self, start: int, size: int) -> Tensor:
        """The rows at ``size`` places from ``start`` on, counted from the beginning of training: int64 ``(size,)``."""
        taken = [torch.empty(0, dtype=torch.int64)]
        while size:
            epoch, offset = divmod(start, self.count)
            if self._latest is None or self._latest[0] != epoch:
                self._latest = epoch, torch.randperm(self.count, generator=generator(self.seed, "epoch", epoch))
            taken.append(self._latest[1][offset : offset + size])
            start, size = start + len(taken[-1]), size - len(taken[-1])
        return torch.cat(taken)
