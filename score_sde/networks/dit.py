"""The diffusion transformer (Peebles and Xie 2023, Section 3): an image is cut into patches, and each attends to all others.

The noise level, and the class where there are classes, enter through the normalizations alone. Each branch of each block is

    x + gate * branch((1 + scale) * normalize(x) + shift)

with shift, scale and gate linear in the embedding (adaptive layer normalization). That linear layer starts at zero, and so
every block starts as the identity ("adaLN-Zero").
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from score_sde.networks.contract import Network
from score_sde.networks.dropout import Dropout
from score_sde.networks.embedding import NoiseEmbedding
from score_sde.networks.recompute import Recomputed, recompute_blocks


class DiT(Network):
    """A diffusion transformer over events ``(C, L)`` or ``(C, H, W)``; the defaults are those of DiT-S/2.

    The paper's other sizes, as (width, depth, heads): B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16).

    Args:
        shape: event shape, channels first.
        width: features of a patch.
        depth: number of blocks.
        heads: number of attention heads, a divisor of ``width``.
        patch: side of a patch, a divisor of every side of the event.
        mlp_ratio: features between the linear layers of a block's perceptron, as a multiple of ``width``, cut off to a whole
            number.
        dropout: probability of dropping a feature at the end of a branch; the paper drops none.
        embedding: ``sinusoidal``, ``transformer`` or ``fourier`` (``NoiseEmbedding``).
        fourier_scale: frequency scale of the Fourier embedding.
        columns_first: whether the first half of the positions' features is of the column, as published weights have it, in
            place of the row.
        classes: number of classes, 0 for none.
        no_class: whether the network may also be told no class.
        learned_variance: give twice the channels, the second half for the variance (Nichol and Dhariwal 2021, Eq. 15).
        recompute: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: the event is not a signal or an image, a size is not positive, or ``patch``, ``heads`` or the sines and
            cosines of the positions do not divide what they have to.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        fourier_scale: float = 1.0,
        columns_first: bool = False,
        classes: int = 0,
        no_class: bool = True,
        learned_variance: bool = False,
        recompute: bool = False,
    ):
        super().__init__()
        self.event = tuple(shape)
        channels, *sides = shape
        if len(sides) not in (1, 2):
            raise ValueError(f"a transformer needs an event (C, L) or (C, H, W), got {tuple(shape)}; the mlp takes any")
        if min(width, depth, heads, patch) < 1:
            given = f"{width}, {depth}, {heads} and {patch}"
            raise ValueError(f"width, depth, heads and patch must be at least 1, got {given}")
        if int(mlp_ratio * width) < 1:
            raise ValueError(f"mlp_ratio leaves no feature of a width of {width}, got {mlp_ratio}")
        if any(side % patch for side in sides):
            raise ValueError(f"an event of shape {tuple(shape)} cannot be cut into patches of side {patch}")
        if width % heads:
            raise ValueError(f"a width of {width} cannot be cut into {heads} attention heads")
        if width % (2 * len(sides)):
            raise ValueError(
                f"width must be a multiple of {2 * len(sides)}, for the sines and cosines of positions, got {width}"
            )
        self.learned_variance, self.classes, self.knows_no_class = learned_variance, classes, no_class
        self.patch, self.outputs = patch, channels * (2 if learned_variance else 1)
        self.embedding = NoiseEmbedding(embedding, 256, width, scale=fourier_scale, classes=classes, no_class=no_class)
        conv = nn.Conv1d if len(sides) == 1 else nn.Conv2d
        self.first = conv(channels, width, patch, stride=patch)
        position = position_features([side // patch for side in sides], width, columns_first=columns_first)
        self.register_buffer("position", position, persistent=False)
        self.blocks = nn.ModuleList(_Block(width, heads, int(mlp_ratio * width), dropout) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch ** len(sides) * self.outputs)
        self._initialize()
        recompute_blocks(self, recompute)

    def _initialize(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        weight, bias = self.first.parameters()
        nn.init.xavier_uniform_(weight.view(len(weight), -1))  # a linear layer of flattened patches
        nn.init.zeros_(bias)
        for layer in self.embedding.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.last.weight)
        for part in self.modules():
            if isinstance(part, DiT | _Block):
                nn.init.zeros_(part.modulation.weight)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, *sides)``, noise levels ``(B,)`` and classes ``(B,)`` to the shape of ``x``, or 2 C where so built."""
        embedding = silu(self.embedding(noise, cond))
        patches = self.first(x)
        tokens = patches.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, embedding)
        tokens = self.last(_normalized(tokens, *self.modulation(embedding)[:, None].chunk(2, dim=-1)))
        return self._assembled(tokens, patches.shape[2:])

    def _assembled(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """``(B, patches, features)`` to ``(B, outputs, *sides)``; features run over a patch's rows, columns, then outputs."""
        axes = len(grid)
        x = tokens.reshape(-1, *grid, *[self.patch] * axes, self.outputs)
        interleaved = [axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1), strict=True) for axis in pair]
        return x.permute(0, -1, *interleaved).reshape(-1, self.outputs, *[side * self.patch for side in grid])


def position_features(grid: Sequence[int], width: int, *, columns_first: bool = False) -> Tensor:
    """Sines and cosines of the position of every patch (Vaswani et al. 2017, Section 3.5), as many for each axis.

    Args:
        grid: number of patches along each axis.
        width: number of features, a multiple of twice the number of axes.
        columns_first: whether the features are those of the last axis first.

    Returns:
        ``(patches, width)``, the patches row by row.
    """
    share = width // len(grid)
    frequencies = torch.exp(-math.log(10000) * torch.arange(share // 2, dtype=torch.float64) / (share // 2))
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (reversed(axes) if columns_first else axes)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).to(torch.get_default_dtype())


class _Block(Recomputed):
    """Self-attention, then a perceptron of one hidden layer, each in a gated residual branch."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width), Dropout(dropout))

    def compute(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        x = x + gate_1 * self._attention(_normalized(x, shift_1, scale_1))
        return x + gate_2 * self.mlp(_normalized(x, shift_2, scale_2))

    def _attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


def _normalized(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
