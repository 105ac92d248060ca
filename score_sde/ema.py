"""Exponential moving average of a model's parameters, used for everything after training.

The decay is warmed up, min(decay, (1 + n) / (10 + n)) after n updates, so that a short run is not held back by its random
initial weights.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """Keeps ``model``, a copy of the trained one whose parameters are its average.

    Args:
        model: the model that is trained.
        decay: weight of the average at each update, in [0, 1).
        warm_up: whether to raise the decay from small values first; not for weights that were trained before.
    """

    def __init__(self, model: Model, decay: float, *, warm_up: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warm_up, self.updates = decay, warm_up, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``; buffers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)
