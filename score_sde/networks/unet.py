"""A U-Net for images and signals (Ronneberger et al. 2015; in the form of Ho et al. 2020, Appendix B).

Each level has residual blocks, with self-attention where asked, and hands every intermediate result to the way back up.
Inside a block the noise level scales and shifts the normalized features (Dhariwal and Nichol 2021, Section 3). Sides of any
length work: going up restores the length that the level had on the way down.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from score_sde.networks.embedding import noise_embedding


class UNet(nn.Module):
    """A U-Net over events ``(C, L)`` or ``(C, H, W)``.

    Args:
        shape: event shape, channels first.
        width: channels at full resolution.
        multipliers: channels at each level as multiples of ``width``; each further level halves the sides.
        blocks: residual blocks per level.
        attention: the levels, counted from 0 at full resolution, that have self-attention. The middle always has it.
        head_width: channels per attention head.
        dropout: probability of dropping a feature inside a block.
        embedding: ``sinusoidal`` or ``fourier``.
        fourier_scale: frequency scale of the Fourier embedding.

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
        embedding: str = "sinusoidal",
        fourier_scale: float = 1.0,
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
        conv = nn.Conv1d if len(sides) == 1 else nn.Conv2d
        features = 4 * width
        self.embedding = nn.Sequential(noise_embedding(embedding, width, features, fourier_scale), nn.SiLU())
        self.first = conv(channels, width, 3, padding=1)

        def block(inputs: int, outputs: int, attends: bool) -> nn.Module:
            return _Block(conv, inputs, outputs, features, dropout, head_width if attends else None)

        current, skips = width, [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(_Down(conv, current))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, multiplier * width, level in attention))
                current = multiplier * width
                skips.append(current)
        self.middle = nn.ModuleList([block(current, current, True), block(current, current, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), multiplier * width, level in attention))
                current = multiplier * width
            if level:
                self.up.append(_Up(conv, current))
        self.last = nn.Sequential(_norm(current), nn.SiLU(), conv(current, channels, 3, padding=1))
        nn.init.zeros_(self.last[-1].weight)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``x`` ``(B, C, L)`` or ``(B, C, H, W)`` and the noise level ``(B,)`` to the shape of ``x``."""
        embedding = self.embedding(noise)
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            if isinstance(layer, _Up):
                x = layer(x, skips[-1].shape[2:])
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.last(x)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels)


class _Block(nn.Module):
    """Two convolutions around a modulation by the noise level, a shortcut, and attention where ``head_width`` is given."""

    def __init__(self, conv: type, inputs: int, outputs: int, features: int, dropout: float, head_width: int | None):
        super().__init__()
        self.before = nn.Sequential(_norm(inputs), nn.SiLU(), conv(inputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(features, 2 * outputs)
        self.norm = _norm(outputs)
        self.after = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), conv(outputs, outputs, 3, padding=1))
        self.shortcut = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = _Attention(conv, outputs, head_width) if head_width else nn.Identity()
        nn.init.zeros_(self.after[-1].weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.norm(self.before(x))
        modulation = self.modulation(embedding)
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        hidden = self.after(torch.addcmul(hidden + shift, hidden, scale))
        return self.attention((self.shortcut(x) + hidden) / math.sqrt(2))


class _Attention(nn.Module):
    """Self-attention over all positions."""

    def __init__(self, conv: type, channels: int, head_width: int):
        super().__init__()
        self.heads = max(1, channels // head_width)
        if channels % self.heads:
            raise ValueError(f"{channels} channels cannot be cut into attention heads of {head_width}")
        self.norm = _norm(channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = conv(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1).transpose(-1, -2)
        attended = scaled_dot_product_attention(*qkv.unbind(1)).transpose(-1, -2).reshape(x.shape)
        return (x + self.out(attended)) / math.sqrt(2)


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

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(interpolate(x, size=tuple(size), mode="nearest"))
