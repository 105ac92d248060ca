"""A U-Net for images and signals (Ronneberger et al. 2015), in the form of ADM (Dhariwal and Nichol 2021, Section 3).

Each level has residual blocks, each followed by self-attention where asked, and hands every intermediate result to the way back
up. Inside a block the noise level, and the class where there are classes, scales and shifts the normalized features (adaptive
group normalization). Sides of any length work: going up restores the length that the level had on the way down.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, avg_pool2d, interpolate, silu

from score_sde.networks.attention import SelfAttention
from score_sde.networks.contract import Network
from score_sde.networks.dropout import Dropout
from score_sde.networks.embedding import NoiseEmbedding
from score_sde.networks.recompute import Recomputed, recompute_blocks
from score_sde.tables import require_name


class UNet(Network):
    """A U-Net over events ``(C, L)`` or ``(C, H, W)``.

    Args:
        shape: event shape, channels first.
        width: channels at full resolution. Every normalization has as many groups, up to 32: the largest power of two that
            divides ``width`` and leaves each at least 4 channels.
        multipliers: channels at each level as multiples of ``width``; each further level halves the sides.
        blocks: residual blocks per level.
        attention: the levels, counted from 0 at full resolution, that have self-attention. The middle always has it.
        head_width: channels per attention head.
        dropout: probability of dropping a feature inside a block.
        resample: how levels are joined: ``conv`` for a strided convolution down and one after enlarging up, ``block`` for
            residual blocks that resample themselves, as ADM has them (Brock et al. 2019).
        embedding: ``sinusoidal`` or ``fourier``.
        fourier_scale: frequency scale of the Fourier embedding.
        classes: number of classes, 0 for none.
        learned_variance: give twice the channels, the second half for the variance (Nichol and Dhariwal 2021, Eq. 15).
        recompute: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: the event is not a signal or an image, has a side that ``multipliers`` halves below 1, a size is not
            positive, or ``attention`` names a level that does not exist.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        head_width: int = 32,
        dropout: float = 0.0,
        resample: str = "conv",
        embedding: str = "sinusoidal",
        fourier_scale: float = 1.0,
        classes: int = 0,
        learned_variance: bool = False,
        recompute: bool = False,
    ):
        super().__init__()
        channels, *sides = shape
        if len(sides) not in (1, 2):
            raise ValueError(f"a U-Net needs an event (C, L) or (C, H, W), got {tuple(shape)}; the mlp takes any")
        if min(width - 3, blocks, head_width) < 1 or not multipliers or min(multipliers) < 1:
            given = f"{width}; {blocks}, {multipliers} and {head_width}"
            raise ValueError(f"width must be at least 4, blocks, multipliers and head_width at least 1, got {given}")
        if min(sides) < 2 ** (len(multipliers) - 1):
            raise ValueError(f"{len(multipliers)} levels are too many for an event of shape {tuple(shape)}")
        if not set(attention) <= set(range(len(multipliers))):
            raise ValueError(f"attention names levels {tuple(attention)}, but there are {len(multipliers)}, from 0")
        require_name("resample", resample, ("conv", "block"))
        self.learned_variance, self.classes = learned_variance, classes
        conv = nn.Conv1d if len(sides) == 1 else nn.Conv2d
        features, groups = 4 * width, math.gcd(width, 32)
        while width // groups < 4:
            groups //= 2
        self.embedding = NoiseEmbedding(embedding, width, features, scale=fourier_scale, classes=classes)
        self.first = conv(channels, width, 3, padding=1)

        def block(inputs: int, outputs: int, attends: bool) -> nn.Module:
            heads = max(1, outputs // head_width) if attends else 0
            return _Block(conv, inputs, outputs, features, dropout, groups, heads=heads)

        def between(direction: str, channels: int) -> nn.Module:
            if resample == "block":
                return _Block(conv, channels, channels, features, dropout, groups, direction=direction)
            return _Down(conv, channels) if direction == "down" else _Up(conv, channels)

        current, skips = width, [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            stage = nn.ModuleList([between("down", current)] if level else [])
            skips += [current] * len(stage)
            for _ in range(blocks):
                stage.append(block(current, multiplier * width, level in attention))
                current = multiplier * width
                skips.append(current)
            self.down.append(stage)
        self.middle = nn.ModuleList([block(current, current, True), block(current, current, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(block(current + skips.pop(), multiplier * width, level in attention))
                current = multiplier * width
            if level:
                stage.append(between("up", current))
            self.up.append(stage)
        outputs = channels * (2 if learned_variance else 1)
        self.last = nn.Sequential(nn.GroupNorm(groups, current), nn.SiLU(), conv(current, outputs, 3, padding=1))
        nn.init.zeros_(self.last[-1].weight)
        self.blocks_per_level = blocks
        recompute_blocks(self, recompute)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, *sides)``, the noise level ``(B,)`` and classes ``(B,)`` to the shape of ``x``, or 2 C channels."""
        embedding = silu(self.embedding(noise, cond))
        x = self.first(x)
        skips = [x]
        for stage in self.down:
            for layer in stage:
                x = layer(x, embedding)
                skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for stage in self.up:
            for layer in stage[: self.blocks_per_level + 1]:
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
            for layer in stage[self.blocks_per_level + 1 :]:
                x = layer(x, embedding, skips[-1].shape[2:])
        return self.last(x)


def adm(
    shape: Sequence[int],
    *,
    width: int = 192,
    multipliers: tuple[int, ...] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: tuple[int, ...] = (1, 2, 3),
    head_width: int = 64,
    dropout: float = 0.1,
    classes: int = 0,
    learned_variance: bool = False,
    recompute: bool = False,
) -> UNet:
    """ADM's U-Net (Dhariwal and Nichol 2021, Table 4). ``UNet`` explains the options.

    The defaults are those of ImageNet 64 x 64, which has 1000 classes and a learned variance besides.
    """
    return UNet(
        shape,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        head_width=head_width,
        dropout=dropout,
        resample="block",
        classes=classes,
        learned_variance=learned_variance,
        recompute=recompute,
    )


class _Block(Recomputed):
    """Two convolutions around a modulation by the embedding, a shortcut, and attention where ``heads`` says how many."""

    def __init__(
        self,
        conv: type,
        inputs: int,
        outputs: int,
        features: int,
        dropout: float,
        groups: int,
        *,
        heads: int = 0,
        direction: str = "",
    ):
        super().__init__()
        self.direction = direction
        self.before = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU())
        self.conv = conv(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(features, 2 * outputs)
        self.norm = nn.GroupNorm(groups, outputs)
        self.after = nn.Sequential(nn.SiLU(), Dropout(dropout), conv(outputs, outputs, 3, padding=1))
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = SelfAttention(outputs, heads=heads, groups=groups) if heads else nn.Identity()
        nn.init.zeros_(self.after[-1].weight)

    def compute(self, x: Tensor, embedding: Tensor, size: Sequence[int] = ()) -> Tensor:
        hidden = self.before(x)
        if self.direction:
            hidden, x = (_resized(value, self.direction, size) for value in (hidden, x))
        hidden = self.norm(self.conv(hidden))
        modulation = self.modulation(embedding)
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        hidden = self.after(torch.addcmul(hidden + shift, hidden, scale))
        return self.attention(self.shortcut(x) + hidden)


class _Down(nn.Module):
    def __init__(self, conv: type, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class _Up(nn.Module):
    def __init__(self, conv: type, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(_resized(x, "up", size))


def _resized(x: Tensor, direction: str, size: Sequence[int]) -> Tensor:
    """Averages of neighbouring pairs down, an odd one out by itself; repeated positions, ``size`` of them, up."""
    if direction == "up":
        return interpolate(x, size=tuple(size), mode="nearest")
    return (avg_pool1d if x.ndim == 3 else avg_pool2d)(x, 2, ceil_mode=True)
