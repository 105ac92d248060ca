r"""NCSN++, DDPM++ and DDPM's U-Net (Song et al. 2021, Appendix H; Ho et al. 2020, Appendix B), one family of networks.

On the way down each level runs its residual blocks, with self-attention after each where asked, then halves the sides; every
intermediate result is kept for the way up, which takes them back in reverse order, one more block per level. The members of the
family differ by

    the block           ``ddpm``: two convolutions, resampled between levels by a layer of its own;
                        ``biggan``: the block itself resamples (Brock et al. 2019)
    the filter          FIR filtering in every resampling (Zhang 2019), or none
    the skip rescale    sums of two branches divided by sqrt(2)
    progressive_input   the shrunk image is fed to every level on the way down, and
    progressive         an image is built up over the levels on the way up (Karras et al. 2020b, Figure 7)

DDPM is ``ddpm`` without filter, rescale and pyramids. DDPM++ is ``biggan`` with the rescale. NCSN++ adds the filter, the
Fourier embedding of log sigma and the residual input pyramid.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from score_sde.networks.attention import SelfAttention
from score_sde.networks.contract import Network
from score_sde.networks.dropout import Dropout
from score_sde.networks.embedding import NoiseEmbedding
from score_sde.networks.recompute import Recomputed, recompute_blocks
from score_sde.networks.resample import Resample
from score_sde.tables import require_name

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "swish": nn.SiLU,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "lrelu": lambda: nn.LeakyReLU(0.2),
}

Layer = TypeVar("Layer", bound=nn.Module)


class NCSNpp(Network):
    """NCSN++ over images ``(C, H, W)``; the defaults are those of the continuous VE model of CIFAR-10.

    Args:
        shape: event shape, channels first.
        width: channels at full resolution.
        multipliers: channels at each level as multiples of ``width``; each further level halves the sides.
        blocks: residual blocks per level on the way down, one less than on the way up.
        attention: the levels, counted from 0 at full resolution, that have self-attention. The middle always has it.
        dropout: probability of dropping a feature inside a block.
        embedding: ``fourier``, ``sinusoidal`` or ``transformer`` (``NoiseEmbedding``).
        fourier_scale: frequency scale of the Fourier embedding.
        logarithm: whether the Fourier embedding is of the logarithm of the noise level, which is then positive.
        sinusoids: number of sines and cosines; 0 for ``width``, or twice that for the Fourier embedding.
        embedding_width: features of noise level and class; 0 for four times ``width``.
        conditional: whether the network is told the noise level at all.
        block: ``ddpm`` or ``biggan``.
        fir: the FIR filter of every resampling; empty for none.
        resample_with_conv: whether the resampling layers between ``ddpm`` blocks have a convolution.
        skip_rescale: divide sums of two branches by sqrt(2).
        progressive: ``none``, ``output_skip`` or ``residual``.
        progressive_input: ``none``, ``input_skip`` or ``residual``.
        combine: how ``input_skip`` joins the image to the features, ``sum`` or ``cat``.
        activation: ``swish``, ``elu``, ``relu`` or ``lrelu``.
        group_width: normalizations have ``min(channels // group_width, 32)`` groups.
        init_scale: scale of the initial weights of the last layer of each branch; 0 for almost nothing.
        centered: whether the data lies in [-1, 1]; else it lies in [0, 1], and the network begins with 2 x - 1.
        classes: number of classes, 0 for none.
        early_classes: whether what stands for the class is added to the sines and cosines (``NoiseEmbedding``).
        learned_variance: give twice the channels, the second half for the variance (Nichol and Dhariwal 2021, Eq. 15).
        recompute: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: the event is not an image whose sides can be halved often enough, or an option is not one of those allowed.
    """

    down: Any  # lists of _Level: torch knows of no list what it holds
    up: Any

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (1,),
        dropout: float = 0.1,
        embedding: str = "fourier",
        fourier_scale: float = 16.0,
        logarithm: bool = True,
        sinusoids: int = 0,
        embedding_width: int = 0,
        conditional: bool = True,
        block: str = "biggan",
        fir: tuple[float, ...] = (1, 3, 3, 1),
        resample_with_conv: bool = True,
        skip_rescale: bool = True,
        progressive: str = "none",
        progressive_input: str = "residual",
        combine: str = "sum",
        activation: str = "swish",
        group_width: int = 4,
        init_scale: float = 0.0,
        centered: bool = True,
        classes: int = 0,
        early_classes: bool = False,
        learned_variance: bool = False,
        recompute: bool = False,
    ):
        super().__init__()
        self.event = tuple(shape)
        if len(shape) != 3:
            raise ValueError(
                f"this network needs images (C, H, W), got {tuple(shape)}; the unet takes signals, the mlp anything"
            )
        levels = len(multipliers)
        if min(width, group_width) < 1 or not levels or min(multipliers) < 1:
            given = f"{width}, {group_width} and {multipliers}"
            raise ValueError(f"width, group_width and multipliers must be at least 1, got {given}")
        if min(blocks, sinusoids, embedding_width) < 0:
            given = f"{blocks}, {sinusoids} and {embedding_width}"
            raise ValueError(f"blocks, sinusoids and embedding_width must not be negative, got {given}")
        if any(side % 2 ** (levels - 1) for side in shape[1:]):
            raise ValueError(f"an image of shape {tuple(shape)} cannot be halved {levels - 1} times; the unet takes any sides")
        if not set(attention) <= set(range(levels)):
            raise ValueError(f"attention names levels {tuple(attention)}, but there are {levels}, from 0")
        for name, value, allowed in (
            ("block", block, ("ddpm", "biggan")),
            ("progressive", progressive, ("none", "output_skip", "residual")),
            ("progressive_input", progressive_input, ("none", "input_skip", "residual")),
            ("combine", combine, ("sum", "cat")),
            ("activation", activation, tuple(ACTIVATIONS)),
        ):
            require_name(name, value, allowed)
        if classes and not conditional:
            raise ValueError("a network with classes must be conditional")
        self.block, self.classes = block, classes
        self.centered, self.learned_variance = centered, learned_variance
        self.takes_logarithm = embedding == "fourier" and logarithm
        features = embedding_width or 4 * width
        style = _Style(
            ACTIVATIONS[activation](),
            features if conditional else 0,
            dropout,
            tuple(fir),
            skip_rescale,
            group_width,
            init_scale,
            0.1 if block == "ddpm" else 1.0,
        )
        self.embedding = None
        if conditional:
            self.embedding = NoiseEmbedding(
                embedding,
                sinusoids or (2 * width if embedding == "fourier" else width),
                features,
                scale=fourier_scale,
                classes=classes,
                early=early_classes,
                activation=style.activation,
            )
            for layer in self.embedding.layers:
                if isinstance(layer, nn.Linear):
                    initialize(layer)

        def between(direction: str, channels: int) -> nn.Module:
            if block == "biggan":
                return Block(style, channels, channels, direction)
            return Step(style.resample(direction, channels, channels if resample_with_conv else None))

        outputs = shape[0] * (2 if learned_variance else 1)
        image, current, skips = shape[0], width, [width]
        self.first = style.conv(image, width)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            channels = multiplier * width
            inputs = ([current] + [channels] * blocks)[:blocks]
            stage = _Stage(style, inputs, channels, level in attention, attend_once=False)
            skips += [channels] * blocks
            current, step, feed = channels if blocks else current, None, None
            if level < levels - 1:
                step = between("down", current)
                if progressive_input == "input_skip":
                    feed = InputSkip(style, image, current, combine)
                    current = current * (2 if combine == "cat" else 1)
                elif progressive_input == "residual":
                    feed = InputResidual(style, image, current)
                    image = current
                skips.append(current)
            self.down.append(_Level(stage, step, feed))
        self.middle = nn.ModuleList([Block(style, current, current), style.attention(current), Block(style, current, current)])
        self.up = nn.ModuleList()
        image = None
        for level, multiplier in reversed(list(enumerate(multipliers))):
            channels = multiplier * width
            inputs = [given + skips.pop() for given in [current] + [channels] * blocks]
            stage = _Stage(style, inputs, channels, level in attention, attend_once=True)
            current, feed = channels, None
            if progressive == "output_skip":
                feed, image = OutputSkip(style, channels, outputs, first=image is None), outputs
            elif progressive == "residual":
                feed, image = OutputResidual(style, image, channels), channels
            self.up.append(_Level(stage, between("up", channels) if level else None, feed))
        self.last = None if progressive == "output_skip" else style.head(current, outputs)
        recompute_blocks(self, recompute)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, H, W)``, the noise level ``(B,)`` and classes ``(B,)`` to ``(B, C, H, W)``, or 2 C where so built."""
        embedding = None
        if self.embedding is not None:
            embedding = self.embedding(noise.log() if self.takes_logarithm else noise, cond)
        image = x if self.centered else 2 * x - 1
        x = self.first(image)
        skips = [x]
        level: _Level
        for level in self.down:
            for block, attention in level.stage.pairs():
                x = attention(block(x, embedding))
                skips.append(x)
            if level.step is not None:
                x = level.step(x, embedding)
                if level.feed is not None:
                    x, image = level.feed(x, image)
                skips.append(x)
        before, attention, after = self.middle
        x = after(attention(before(x, embedding)), embedding)
        for level in self.up:
            for block, attention in level.stage.pairs():
                x = attention(block(torch.cat([x, skips.pop()], dim=1), embedding))
            if level.feed is not None:
                x, image = level.feed(x, image)
            if level.step is not None:
                x = level.step(x, embedding)
        return image if self.last is None else self.last(x)


def initialize(layer: Layer, scale: float = 1.0) -> Layer:
    """DDPM's initial weights: uniform, of variance ``scale`` over the mean of inputs and outputs; no bias."""
    weight, bias = layer.parameters()
    nn.init.xavier_uniform_(weight, gain=math.sqrt(scale or 1e-10))
    nn.init.zeros_(bias)
    return layer


@dataclass(frozen=True)
class _Style:
    """What all parts of one network have in common, and the layers built from it."""

    activation: nn.Module
    features: int
    dropout: float
    fir: tuple[float, ...]
    rescale: bool
    group_width: int
    init_scale: float
    shortcut_scale: float

    def conv(self, inputs: int, outputs: int, scale: float = 1.0, kernel: int = 3) -> nn.Conv2d:
        return initialize(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), scale)

    def norm(self, channels: int) -> nn.GroupNorm:
        groups = max(1, min(channels // self.group_width, 32))
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be normalized in {groups} groups: change width")
        return nn.GroupNorm(groups, channels, eps=1e-6)

    def head(self, inputs: int, outputs: int, scale: float | None = None) -> nn.Sequential:
        scale = self.init_scale if scale is None else scale
        return nn.Sequential(self.norm(inputs), self.activation, self.conv(inputs, outputs, scale))

    def attention(self, channels: int) -> SelfAttention:
        norm = self.norm(channels)
        layer = SelfAttention(channels, heads=1, groups=norm.num_groups, eps=norm.eps, rescale=self.rescale)
        nn.init.zeros_(layer.qkv.bias)
        for part in layer.qkv.weight.chunk(3):  # three layers in one
            nn.init.xavier_uniform_(part, gain=math.sqrt(0.1))
        initialize(layer.out, self.init_scale)
        return layer

    def resample(self, direction: str, inputs: int, outputs: int | None) -> Resample:
        layer = Resample(direction, self.fir, conv=(inputs, outputs) if outputs else None)
        if layer.conv is not None:
            initialize(layer.conv)
        return layer

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) / math.sqrt(2) if self.rescale else a + b


class Block(Recomputed):
    """Two convolutions with the noise level added between them, and a shortcut; resampled where a direction is given."""

    def __init__(self, style: _Style, inputs: int, outputs: int, direction: str | None = None):
        super().__init__()
        self.style = style
        self.norm_1 = style.norm(inputs)
        self.resample = style.resample(direction, inputs, None) if direction else None
        self.conv_1 = style.conv(inputs, outputs)
        self.modulation = initialize(nn.Linear(style.features, outputs)) if style.features else None
        self.norm_2 = style.norm(outputs)
        self.dropout = Dropout(style.dropout)
        self.conv_2 = style.conv(outputs, outputs, style.init_scale)
        self.shortcut = None
        if inputs != outputs or direction:
            self.shortcut = style.conv(inputs, outputs, style.shortcut_scale, kernel=1)

    def compute(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        activation = self.style.activation
        hidden = activation(self.norm_1(x))
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = self.conv_1(hidden)
        if self.modulation is not None:
            hidden = hidden + self.modulation(activation(embedding))[:, :, None, None]
        hidden = self.conv_2(self.dropout(activation(self.norm_2(hidden))))
        return self.style.add(x if self.shortcut is None else self.shortcut(x), hidden)


class Step(nn.Module):
    """Resampling by a layer of its own, called as a block is."""

    def __init__(self, resample: Resample):
        super().__init__()
        self.resample = resample

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        return self.resample(x)


class _Stage(nn.Module):
    """The residual blocks of a level: attention after each of them, or after the last alone."""

    def __init__(self, style: _Style, inputs: Sequence[int], channels: int, attends: bool, *, attend_once: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(style, given, channels) for given in inputs)
        count = 0 if not attends else 1 if attend_once else len(inputs)
        self.attention = nn.ModuleList(style.attention(channels) for _ in range(count))

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each block with what follows it."""
        missing = len(self.blocks) - len(self.attention)
        yield from zip(self.blocks, [nn.Identity()] * missing + list(self.attention), strict=True)


class _Level(nn.Module):
    """A level's blocks, the step to the next level, and what joins the image to the features."""

    def __init__(self, stage: _Stage, step: nn.Module | None, feed: nn.Module | None):
        super().__init__()
        self.stage, self.step, self.feed = stage, step, feed


class InputSkip(nn.Module):
    """The image, shrunk, is added to the features through a 1 x 1 convolution, or stands beside them."""

    def __init__(self, style: _Style, image: int, channels: int, combine: str):
        super().__init__()
        self.resample = style.resample("down", image, None)
        self.conv = style.conv(image, channels, kernel=1)
        self.combine = combine

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        image = self.resample(image)
        told = self.conv(image)
        return (torch.cat([told, x], dim=1) if self.combine == "cat" else told + x), image


class InputResidual(nn.Module):
    """The image, shrunk by a learned convolution, and the features become one."""

    def __init__(self, style: _Style, image: int, channels: int):
        super().__init__()
        self.style, self.resample = style, style.resample("down", image, channels)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.style.add(self.resample(image), x)
        return x, x


class OutputSkip(nn.Module):
    """The image so far, enlarged, plus what this level's features say of it; at ``first`` there is no image so far."""

    def __init__(self, style: _Style, channels: int, outputs: int, *, first: bool):
        super().__init__()
        self.resample = None if first else style.resample("up", outputs, None)
        self.head = style.head(channels, outputs)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        told = self.head(x)
        return x, told if self.resample is None else self.resample(image) + told


class OutputResidual(nn.Module):
    """The image so far, enlarged by a learned convolution, and the features become one; at first a head makes it."""

    def __init__(self, style: _Style, image: int | None, channels: int):
        super().__init__()
        self.style, self.first = style, image is None
        self.layer = style.head(channels, channels, 1.0) if image is None else style.resample("up", image, channels)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            return x, self.layer(x)
        x = self.style.add(self.layer(image), x)
        return x, x


def ddpm(
    shape: Sequence[int],
    *,
    width: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 2,
    attention: tuple[int, ...] = (1,),
    dropout: float = 0.1,
    resample_with_conv: bool = True,
    activation: str = "swish",
    centered: bool = True,
    classes: int = 0,
    learned_variance: bool = False,
    recompute: bool = False,
) -> NCSNpp:
    """DDPM's U-Net (Ho et al. 2020, Appendix B); the defaults are those of CIFAR-10. ``NCSNpp`` explains the options."""
    return NCSNpp(
        shape,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        dropout=dropout,
        embedding="sinusoidal",
        block="ddpm",
        fir=(),
        resample_with_conv=resample_with_conv,
        skip_rescale=False,
        progressive_input="none",
        activation=activation,
        group_width=1,
        centered=centered,
        classes=classes,
        learned_variance=learned_variance,
        recompute=recompute,
    )
