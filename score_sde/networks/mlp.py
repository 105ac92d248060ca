"""A residual multilayer perceptron for vectors, or for any small data taken as one."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from score_sde.networks.contract import Network
from score_sde.networks.dropout import Dropout
from score_sde.networks.embedding import NoiseEmbedding


class MLP(Network):
    """Residual blocks of width ``width``, each modulated by the noise level.

    Args:
        shape: event shape ``D``; the event is flattened.
        width: hidden units.
        depth: residual blocks.
        dropout: probability of dropping a hidden unit.
        embedding: ``sinusoidal``, ``transformer`` or ``fourier`` (``NoiseEmbedding``).
        fourier_scale: frequency scale of the Fourier embedding.
        classes: number of classes, 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 128,
        depth: int = 4,
        dropout: float = 0.0,
        embedding: str = "fourier",
        fourier_scale: float = 0.2,
        classes: int = 0,
    ):
        super().__init__()
        self.event = tuple(shape)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        dim, self.classes = math.prod(shape), classes
        self.embedding = NoiseEmbedding(embedding, width, width, scale=fourier_scale, classes=classes)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, *D)``, the noise level ``(B,)`` and classes ``(B,)`` to ``(B, *D)``."""
        embedding = self.embedding(noise, cond)
        hidden = self.first(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.last(hidden).reshape(x.shape)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return x + self.layers(self.norm(x) * (1 + scale) + shift)
