"""A U-Net for images and signals (Ronneberger et al. 2015), in the form of ADM (Dhariwal and Nichol 2021, Section 3).

Each level has residual blocks, each followed by self-attention where asked, and hands every intermediate result to the way back
up. Inside a block the noise level, and the class where there are classes, scales and shifts the normalized features (adaptive
group normalization), or is added before the normalization (Ho et al. 2020). Sides of any length work: going up restores the
length that the level had on the way down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, avg_pool2d, interpolate, silu

from score_sde.networks.attention import SelfAttention
from score_sde.networks.contract import Network
from score_sde.networks.dropout import Dropout
from score_sde.networks.embedding import NoiseEmbedding
from score_sde.networks.recompute import Recomputed, recompute_blocks
from score_sde.networks.waves import with_waves
from score_sde.tables import require_name


@dataclass(frozen=True)
class Design:
    """What all parts of one network have in common, and the parts built from it. ``UNet`` explains the options."""

    width: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    head_width: int
    heads: int
    dropout: float
    resample: str
    modulation: str
    embedding: str
    fourier_scale: float
    stem: int
    group_width: int
    signal: bool
    heads_up: int = 0
    narrow_attention: bool = True
    embedding_width: int = 0
    classes: int = 0
    no_class: bool = True
    waves: tuple[float, ...] = ()

    def __post_init__(self):
        if min(self.width - 3, self.head_width) < 1 or not self.multipliers or min(self.widths) < 1:
            given = f"{self.width}; {self.multipliers} and {self.head_width}"
            raise ValueError(f"width must be at least 4, multipliers and head_width at least 1, got {given}")
        counts = ("blocks", "stem", "group_width", "heads", "heads_up", "embedding_width")
        if min(given := [getattr(self, name) for name in counts]) < 0:
            raise ValueError(f"{', '.join(counts)} must not be negative, got {', '.join(map(str, given))}")
        if self.heads_up and not self.heads:
            raise ValueError("heads_up changes the number of heads on the way up: give heads too")
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(f"attention names levels {tuple(self.attention)}, but there are {len(self.multipliers)}, from 0")
        if not all(0 < count < math.inf for count in self.waves):
            raise ValueError(f"waves must be positive numbers, got {tuple(self.waves)}")
        require_name("resample", self.resample, ("conv", "block", "pool"))
        require_name("modulation", self.modulation, ("scale_shift", "add"))

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return [int(multiplier * self.width) for multiplier in self.multipliers]

    @property
    def features(self) -> int:
        """The length of the embedding of noise level and class."""
        return self.embedding_width or 4 * self.width

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv1d | nn.Conv2d:
        """A convolution that keeps the sides, or divides them by ``stride``."""
        kind = nn.Conv1d if self.signal else nn.Conv2d
        return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def norm(self, channels: int) -> nn.GroupNorm:
        """A normalization.

        Raises:
            ValueError: its groups do not divide ``channels``.
        """
        groups = max(1, min(channels // self.group_width, 32)) if self.group_width else self._groups
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be normalized in {groups} groups: change width or group_width")
        return nn.GroupNorm(groups, channels)

    @property
    def _groups(self) -> int:
        groups = math.gcd(self.width, 32)
        while self.width // groups < 4:
            groups //= 2
        return groups

    def block(self, inputs: int, outputs: int, attends: bool, *, up: bool = False) -> "Block":
        """A residual block, with attention after it where it ``attends``."""
        return Block(self, inputs, outputs, heads=self.heads_of(outputs, up=up) if attends else 0)

    def heads_of(self, channels: int, *, up: bool = False) -> int:
        """How many heads an attention of so many channels has; 0 where there is none."""
        fewest = 1 if self.narrow_attention else 0
        return (up and self.heads_up) or self.heads or max(fewest, channels // self.head_width)

    def between(self, direction: str, channels: int) -> nn.Module:
        """What leads from a level to the next one ``down`` or ``up``."""
        if self.resample == "block":
            return Block(self, channels, channels, direction=direction)
        return Step(self, channels, direction)


class Encoder(Network):
    """The way down and the middle of a U-Net.

    Args:
        shape: event shape, channels first, one or two sides.
        design: what its parts have in common.

    Raises:
        ValueError: the event is not a signal or an image, or has a side that the levels halve below 1.
    """

    down: Any  # lists of lists of layers: torch knows of no list what it holds
    middle: Any

    def __init__(self, shape: Sequence[int], design: Design):
        super().__init__()
        self.event = tuple(shape)
        channels, *sides = shape
        if len(sides) not in (1, 2):
            raise ValueError(f"a U-Net needs an event (C, L) or (C, H, W), got {tuple(shape)}; the mlp takes any")
        levels = len(design.multipliers)
        if min(sides) < 2 ** (levels - 1):
            raise ValueError(f"{levels} levels are too many for an event of shape {tuple(shape)}")
        self.embedding = NoiseEmbedding(
            design.embedding,
            design.width,
            design.features,
            scale=design.fourier_scale,
            classes=design.classes,
            no_class=design.no_class,
        )
        current = design.stem or design.width
        self.waves, self.takes_float32 = tuple(design.waves), bool(design.waves)
        self.first = design.conv(channels * (1 + 2 * len(self.waves)), current)
        self.kept = [current]
        self.down = nn.ModuleList()
        for level, width in enumerate(design.widths):
            stage = nn.ModuleList([design.between("down", current)] if level else [])
            self.kept += [current] * len(stage)
            for _ in range(design.blocks):
                stage.append(design.block(current, width, level in design.attention))
                current = width
                self.kept.append(current)
            self.down.append(stage)
        self.middle = nn.ModuleList([design.block(current, current, True), design.block(current, current, False)])

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """``x`` ``(B, C, *sides)`` and the embedding ``(B, features)`` to all intermediate results, that of the middle last."""
        if self.waves:
            x = with_waves(x, self.waves).to(self.first.weight.dtype)
        results = [self.first(x)]
        for stage in self.down:
            for layer in stage:
                results.append(layer(results[-1], embedding))
        x = results[-1]
        for layer in self.middle:
            x = layer(x, embedding)
        return [*results, x]


class UNet(Encoder):
    """A U-Net over events ``(C, L)`` or ``(C, H, W)``.

    Args:
        shape: event shape, channels first.
        width: channels at full resolution.
        multipliers: channels at each level as multiples of ``width``, cut off to whole numbers; each further level halves the
            sides.
        blocks: residual blocks per level on the way down, one less than on the way up.
        attention: the levels, counted from 0 at full resolution, that have self-attention. The middle always has it.
        head_width: channels per attention head, where ``heads`` is 0.
        narrow_attention: whether there is attention, of one head, where there are fewer channels than ``head_width``.
        heads: number of attention heads at every level.
        heads_up: number of heads on the way up; 0 for ``heads``.
        dropout: probability of dropping a feature inside a block.
        resample: how levels are joined: ``conv`` for a strided convolution down and one after enlarging up, ``block`` for
            residual blocks that resample themselves, as ADM has them (Brock et al. 2019), ``pool`` for means and repetition.
        modulation: how a block takes the embedding: ``scale_shift`` of its normalized features, or ``add`` before that.
        embedding: ``sinusoidal``, ``transformer`` or ``fourier`` (``NoiseEmbedding``).
        fourier_scale: frequency scale of the Fourier embedding.
        embedding_width: features of noise level and class; 0 for four times ``width``.
        stem: channels after the first convolution; 0 for ``width``.
        group_width: normalizations have ``min(channels // group_width, 32)`` groups. With 0 all have the same number, up to 32:
            the largest power of two that divides ``width`` and leaves each group at least 4 channels.
        classes: number of classes, 0 for none.
        no_class: whether the network may also be told no class.
        waves: numbers of waves over [-1, 1]; sine and cosine of each are further channels of the input. Integers of L levels
            ask for L and L / 2 (``score_sde.networks.waves``). None by default.
        learned_variance: give twice the channels, the second half for the variance (Nichol and Dhariwal 2021, Eq. 15).
        recompute: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: the event is not a signal or an image, has a side that ``multipliers`` halves below 1, a size is not
            positive, does not divide what it has to, or ``attention`` names a level that does not exist.
    """

    up: Any

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        multipliers: tuple[float, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        head_width: int = 32,
        heads: int = 0,
        heads_up: int = 0,
        narrow_attention: bool = True,
        dropout: float = 0.0,
        resample: str = "conv",
        modulation: str = "scale_shift",
        embedding: str = "sinusoidal",
        fourier_scale: float = 1.0,
        embedding_width: int = 0,
        stem: int = 0,
        group_width: int = 0,
        classes: int = 0,
        no_class: bool = True,
        waves: tuple[float, ...] = (),
        learned_variance: bool = False,
        recompute: bool = False,
    ):
        design = Design(
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            head_width=head_width,
            heads=heads,
            dropout=dropout,
            resample=resample,
            modulation=modulation,
            embedding=embedding,
            fourier_scale=fourier_scale,
            stem=stem,
            group_width=group_width,
            signal=len(shape) == 2,
            heads_up=heads_up,
            narrow_attention=narrow_attention,
            embedding_width=embedding_width,
            classes=classes,
            no_class=no_class,
            waves=waves,
        )
        super().__init__(shape, design)
        self.learned_variance, self.classes, self.knows_no_class = learned_variance, classes, no_class
        current, skips = self.kept[-1], list(self.kept)
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(design.widths))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(design.block(current + skips.pop(), width, level in attention, up=True))
                current = width
            if level:
                stage.append(design.between("up", current))
            self.up.append(stage)
        last = design.conv(current, shape[0] * (2 if learned_variance else 1))
        nn.init.zeros_(last.weight)
        self.last = nn.Sequential(design.norm(current), nn.SiLU(), last)
        self.blocks_per_level = blocks
        recompute_blocks(self, recompute)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, *sides)``, the noise level ``(B,)`` and classes ``(B,)`` to the shape of ``x``, or 2 C channels."""
        embedding = silu(self.embedding(noise, cond))
        *skips, x = self.encode(x, embedding)
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
    multipliers: tuple[float, ...] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: tuple[int, ...] = (1, 2, 3),
    head_width: int = 64,
    heads: int = 0,
    heads_up: int = 0,
    narrow_attention: bool = True,
    dropout: float = 0.1,
    resample: str = "block",
    modulation: str = "scale_shift",
    embedding: str = "sinusoidal",
    embedding_width: int = 0,
    stem: int = 0,
    group_width: int = 0,
    classes: int = 0,
    no_class: bool = True,
    learned_variance: bool = False,
    recompute: bool = False,
) -> UNet:
    """ADM's U-Net (Dhariwal and Nichol 2021, Table 4), and that of improved DDPM. ``UNet`` explains the options.

    The defaults are those of ImageNet 64 x 64, which has 1000 classes and a learned variance besides. Published weights need
    the embedding ``transformer``, a group_width of 1, and in ADM a stem of the first level's width. The U-Net of improved DDPM
    (Nichol and Dhariwal 2021, Appendix A) has the resampling ``conv`` and 4 heads.
    """
    return UNet(
        shape,
        width=width,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        head_width=head_width,
        heads=heads,
        heads_up=heads_up,
        narrow_attention=narrow_attention,
        dropout=dropout,
        resample=resample,
        modulation=modulation,
        embedding=embedding,
        embedding_width=embedding_width,
        stem=stem,
        group_width=group_width,
        classes=classes,
        no_class=no_class,
        learned_variance=learned_variance,
        recompute=recompute,
    )


def vdm(
    shape: Sequence[int],
    *,
    width: int = 128,
    blocks: int = 32,
    dropout: float = 0.1,
    heads: int = 1,
    modulation: str = "add",
    embedding: str = "sinusoidal",
    group_width: int = 1,
    waves: tuple[float, ...] = (128, 256),
    classes: int = 0,
    no_class: bool = True,
    learned_variance: bool = False,
    recompute: bool = False,
) -> UNet:
    """VDM's network for likelihood (Kingma et al. 2021, Appendix B): a U-Net of one level, with Fourier features of its input.

    All of it is at full resolution. Down to the middle are ``blocks`` residual blocks, up again one more, and each of these
    also takes a result of the way down. Attention is in the middle alone. ``UNet`` explains the options. The defaults are those
    of CIFAR-10; the ``waves`` are those of 256 levels in [-1, 1].
    """
    return UNet(
        shape,
        width=width,
        multipliers=(1,),
        blocks=blocks,
        attention=(),
        heads=heads,
        dropout=dropout,
        modulation=modulation,
        embedding=embedding,
        group_width=group_width,
        classes=classes,
        no_class=no_class,
        waves=waves,
        learned_variance=learned_variance,
        recompute=recompute,
    )


class Block(Recomputed):
    """Two convolutions around a modulation by the embedding, a shortcut, and attention where ``heads`` says how many."""

    def __init__(self, design: Design, inputs: int, outputs: int, *, heads: int = 0, direction: str = ""):
        super().__init__()
        self.direction, self.adds = direction, design.modulation == "add"
        self.before = nn.Sequential(design.norm(inputs), nn.SiLU())
        self.conv = design.conv(inputs, outputs)
        self.modulation = nn.Linear(design.features, outputs if self.adds else 2 * outputs)
        self.norm = design.norm(outputs)
        last = design.conv(outputs, outputs)
        nn.init.zeros_(last.weight)
        self.after = nn.Sequential(nn.SiLU(), Dropout(design.dropout), last)
        self.shortcut = design.conv(inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()
        groups = self.norm.num_groups
        self.attention = SelfAttention(outputs, heads=heads, groups=groups) if heads else nn.Identity()

    def compute(self, x: Tensor, embedding: Tensor, size: Sequence[int] = ()) -> Tensor:
        """``x`` ``(B, inputs, *sides)`` to ``(B, outputs, *sides)``; ``size`` is the sides after going up."""
        hidden = self.before(x)
        if self.direction:
            hidden, x = (_resized(value, self.direction, size) for value in (hidden, x))
        hidden = self.conv(hidden)
        modulation = self.modulation(embedding)
        modulation = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2))
        if self.adds:
            hidden = self.norm(hidden + modulation)
        else:
            hidden, (scale, shift) = self.norm(hidden), modulation.chunk(2, dim=1)
            hidden = torch.addcmul(hidden + shift, hidden, scale)
        return self.attention(self.shortcut(x) + self.after(hidden))


class Step(nn.Module):
    """Resampling between levels, with or without a convolution, called as a block is."""

    def __init__(self, design: Design, channels: int, direction: str):
        super().__init__()
        self.direction = direction
        stride = 2 if direction == "down" else 1
        self.conv = design.conv(channels, channels, stride=stride) if design.resample == "conv" else None

    def forward(self, x: Tensor, embedding: Tensor, size: Sequence[int] = ()) -> Tensor:
        """``x`` ``(B, C, *sides)`` to half of the sides, or up to ``size``."""
        if self.conv is None:
            return _resized(x, self.direction, size)
        return self.conv(x if self.direction == "down" else _resized(x, "up", size))


def _resized(x: Tensor, direction: str, size: Sequence[int]) -> Tensor:
    """Averages of neighbouring pairs down, an odd one out by itself; repeated positions, ``size`` of them, up."""
    if direction == "up":
        return interpolate(x, size=tuple(size), mode="nearest")
    return (avg_pool1d if x.ndim == 3 else avg_pool2d)(x, 2, ceil_mode=True)
