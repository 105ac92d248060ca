"""Dropout whose masks can be drawn again: they come from a stream that is known by the name of the layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Drops a feature with probability ``p`` in training (Srivastava et al. 2014).

    Within ``masks_from`` the masks come from there. Elsewhere they come from torch's global generator.
    """

    uniform: Callable[[Sequence[int]], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``(B, ...)`` with features set to zero, the others divided by 1 - p."""
        if not self.training or not self.p:
            return x
        if torch.compiler.is_compiling():  # it cannot follow a generator
            drop: Any = torch.compiler.disable(self._drop)
            return drop(x)
        return self._drop(x)

    def _drop(self, x: Tensor) -> Tensor:
        if self.uniform is None:
            return super().forward(x)
        dropped = self.uniform(x.shape) < self.p
        return x.masked_fill(dropped, 0.0) * (1 / (1 - self.p) if self.p < 1 else 0.0)


@contextmanager
def masks_from(uniform: Callable[[str, Sequence[int]], Tensor], layers: dict[str, Dropout]) -> Iterator[None]:
    """Within it, each of ``layers`` takes its mask from ``uniform(purpose, shape)``, numbers in [0, 1).

    The purpose is the name of the layer. So a layer that is computed again, by gradient checkpointing or because the network
    is called twice, drops the same features.
    """
    for name, layer in layers.items():
        layer.uniform = partial(uniform, f"dropout of {name}")
    try:
        yield
    finally:
        for layer in layers.values():
            layer.uniform = None


def dropout_layers(network: nn.Module) -> dict[str, Dropout]:
    """The layers of ``network`` that drop anything, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Dropout) and layer.p}
