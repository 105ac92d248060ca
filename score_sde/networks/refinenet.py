"""NCSNv2's RefineNet (Song and Ermon 2020, Table 3; Lin et al. 2017), which is not told the noise level.

Residual stages make the features coarser. Where another network would go on halving the sides, the last two stages dilate their
convolutions by 2 and 4 instead (Yu and Koltun 2016). Then, from the coarsest stage to the finest, a refine block joins the
stage's features to what came from below: residual units on each input, all inputs enlarged and summed, a chain of poolings that
gathers the surroundings, and residual units again.

Normalization is InstanceNorm++ (Song and Ermon 2019, Appendix A). Over the pixels of each channel k of one image let m_k be the
mean and v_k the variance, and over the channels let m and v be the mean and the variance of the m_k. With a, b and c learned,

    InstanceNorm++(x)_k = b_k [(x_k - m_k) / sqrt(v_k) + a_k (m_k - m) / sqrt(v)] + c_k

where plain instance normalization would forget the m_k. (The paper learns the product b_k a_k in place of a_k; this is the
form of the published weights.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, instance_norm, interpolate

from score_sde.networks.contract import Network
from score_sde.networks.ncsnpp import ACTIVATIONS
from score_sde.networks.recompute import Recomputed, recompute_blocks
from score_sde.tables import require_name
from score_sde.tensors import total


class _Stage(NamedTuple):
    """A residual stage; the published weights name it ``res`` and its refine block ``refine`` with these numbers."""

    residual: str
    refine: str
    multiplier: int
    halves: bool
    dilation: int


_STAGES = {
    4: (
        _Stage("1", "4", 1, False, 1),
        _Stage("2", "3", 2, True, 1),
        _Stage("3", "2", 2, False, 2),
        _Stage("4", "1", 2, False, 4),
    ),
    5: (
        _Stage("1", "5", 1, False, 1),
        _Stage("2", "4", 2, True, 1),
        _Stage("3", "3", 2, True, 1),
        _Stage("4", "2", 4, False, 2),
        _Stage("5", "1", 4, False, 4),
    ),
    6: (
        _Stage("1", "5", 1, False, 1),
        _Stage("2", "4", 2, True, 1),
        _Stage("3", "3", 2, True, 1),
        _Stage("31", "31", 2, True, 1),
        _Stage("4", "2", 4, False, 2),
        _Stage("5", "1", 4, False, 4),
    ),
}


class NCSNv2(Network):
    """The RefineNet of NCSNv2 over images ``(C, H, W)``.

    The noise level is accepted and ignored: the published network differs between levels by the factor 1/sigma alone, and that
    factor is the parameterization's.

    Names, shapes and order of the parameters are those of the published PyTorch weights. Two things differ: the last
    convolution starts at zero, so that a new network predicts 0, and the last ``instance`` normalization adds 1e-5 to the
    variance like all others, where the published one adds the number of noise levels.

    Args:
        shape: event shape, channels first.
        width: channels at full resolution.
        stages: 4, 5 or 6 residual stages, which halve the sides 1, 2 or 3 times; 0 for the published choice by the larger
            side, 4 below 96 pixels, 5 to 128, 6 to 256.
        normalization: ``instance++``, ``instance`` (without parameters) or ``variance`` (channels divided by their standard
            deviation, their means kept).
        activation: ``elu``, ``relu``, ``lrelu`` or ``swish``.
        centered: whether the data lies in [-1, 1]; else it lies in [0, 1], and the network begins with 2 x - 1.
        learned_variance: give twice the channels, the second half for the variance (Nichol and Dhariwal 2021, Eq. 15).
        recompute: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: the event is not an image whose sides can be halved often enough, or an option is not one of those allowed.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 128,
        stages: int = 0,
        normalization: str = "instance++",
        activation: str = "elu",
        centered: bool = True,
        learned_variance: bool = False,
        recompute: bool = False,
    ):
        super().__init__()
        self.event = tuple(shape)
        if len(shape) != 3:
            raise ValueError(
                f"this network needs images (C, H, W), got {tuple(shape)}; the unet takes signals, the mlp anything"
            )
        if width < 2:
            raise ValueError(f"width must be at least 2, got {width}")
        if stages not in (0, *_STAGES):
            raise ValueError(f"unknown stages {stages!r}; choose one of 0, {', '.join(map(str, _STAGES))}")
        require_name("normalization", normalization, _NORMALIZATIONS)
        require_name("activation", activation, ACTIVATIONS)
        channels, *sides = shape
        if not stages and max(sides) > 256:
            raise ValueError(
                f"no number of stages is known for sides above 256, got {tuple(shape)}: choose stages, 6 for example"
            )
        self.stages = _STAGES[stages or (4 if max(sides) < 96 else 5 if max(sides) <= 128 else 6)]
        unit = 2 ** sum(stage.halves for stage in self.stages)
        if any(side % unit or side == unit for side in sides):
            raise ValueError(
                f"{len(self.stages)} stages need sides that are multiples of {unit} and larger than it, got {tuple(shape)}"
            )
        self.centered, self.learned_variance = centered, learned_variance
        self.activation = ACTIVATIONS[activation]()
        norm = _NORMALIZATIONS[normalization]
        self.begin_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.normalizer = norm(width)
        self.end_conv = nn.Conv2d(width, channels * (2 if learned_variance else 1), 3, padding=1)
        nn.init.zeros_(self.end_conv.weight)
        widths = [width * stage.multiplier for stage in self.stages]
        finer = [width, *widths[:-1]]
        for stage, inputs, outputs in zip(self.stages, finer, widths, strict=True):
            blocks = (
                _ResidualBlock(
                    inputs, outputs, stage.dilation, norm, self.activation, shortcut=_shortcut(stage, inputs, outputs)
                ),
                _ResidualBlock(outputs, outputs, stage.dilation, norm, self.activation),
            )
            self.add_module(f"res{stage.residual}", nn.Sequential(*blocks))
        refine = {
            stage.refine: _RefineBlock(
                [inputs] if stage is self.stages[-1] else [inputs, inputs],
                outputs,
                3 if stage is self.stages[0] else 1,
                self.activation,
            )
            for stage, inputs, outputs in zip(self.stages, widths, finer, strict=True)
        }
        for name in sorted(refine):  # the order of the published parameters
            self.add_module(f"refine{name}", refine[name])
        recompute_blocks(self, recompute)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, C, H, W)`` to ``(B, C, H, W)``, or 2 C where so built; ``noise`` ``(B,)`` changes nothing.

        Raises:
            ValueError: a condition is given.
        """
        if cond is not None:
            raise ValueError("this network takes no condition; the unet, ncsnpp and dit do")
        x = self.begin_conv(x if self.centered else 2 * x - 1)
        levels = []
        for stage in self.stages:
            x = self.get_submodule(f"res{stage.residual}")(x)
            levels.append(x)
        coarser: tuple[Tensor, ...] = ()
        for stage in reversed(self.stages):
            coarser = (self.get_submodule(f"refine{stage.refine}")(levels.pop(), *coarser),)
        return self.end_conv(self.activation(self.normalizer(*coarser)))


class InstanceNormPlus(nn.Module):
    """InstanceNorm++ (Song and Ermon 2019, Appendix A), which tells the next layer how the means of the channels differ.

    The variance over the pixels is divided by their number, the variance over the channels by one less than theirs; 1e-5 is
    added to both.

    Args:
        channels: number of channels, at least 2.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        means = x.mean(dim=(2, 3), keepdim=True)
        variance, mean = torch.var_mean(means, dim=1, keepdim=True)
        alpha, gamma, beta = (weight[:, None, None] for weight in (self.alpha, self.gamma, self.beta))
        return gamma * (instance_norm(x) + alpha * (means - mean) / (variance + 1e-5).sqrt()) + beta


class VarianceNorm(nn.Module):
    """Each channel of each image divided by its standard deviation, its mean kept, then scaled.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        return self.alpha[:, None, None] * x / (x.var(dim=(2, 3), keepdim=True) + 1e-5).sqrt()


_NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "instance++": InstanceNormPlus,
    "instance": nn.InstanceNorm2d,
    "variance": VarianceNorm,
}


def _conv(inputs: int, outputs: int, *, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class _PooledConv(nn.Module):
    """A convolution, then averages of 2 x 2 pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.conv(x), 2)


def _shortcut(stage: _Stage, inputs: int, outputs: int) -> nn.Module | None:
    """What stands beside the first block of a stage: every stage but the finest has a layer there, whatever its channels."""
    if stage.halves:
        return _PooledConv(inputs, outputs, 1)
    return _conv(inputs, outputs, dilation=stage.dilation) if stage.dilation > 1 else None


class _ResidualBlock(Recomputed):
    """Two convolutions, each after a normalization and an activation; the second halves the sides where the shortcut does."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dilation: int,
        norm: Callable[[int], nn.Module],
        activation: nn.Module,
        *,
        shortcut: nn.Module | None = None,
    ):
        super().__init__()
        halves = isinstance(shortcut, _PooledConv)
        self.conv1 = _conv(inputs, inputs, dilation=dilation)
        self.normalize2 = norm(inputs)
        self.conv2 = _PooledConv(inputs, outputs, 3) if halves else _conv(inputs, outputs, dilation=dilation)
        self.shortcut = shortcut
        self.normalize1 = norm(inputs)
        self.activation = activation

    def compute(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.activation(self.normalize1(x)))
        hidden = self.conv2(self.activation(self.normalize2(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class _RefineBlock(Recomputed):
    """Features of a stage, and coarser ones where there are any, to features as fine (Lin et al. 2017, Figure 3)."""

    def __init__(self, inputs: Sequence[int], outputs: int, units: int, activation: nn.Module):
        super().__init__()
        self.adapt_convs = nn.ModuleList(_Units(channels, 2, activation) for channels in inputs)
        self.output_convs = _Units(outputs, units, activation)
        self.msf = _Fusion(inputs, outputs) if len(inputs) > 1 else None
        self.crp = _ChainedPooling(outputs, activation)

    def compute(self, *features: Tensor) -> Tensor:
        x, *coarser = (units(given) for units, given in zip(self.adapt_convs, features, strict=True))
        if self.msf is not None:
            x = self.msf(x, *coarser)
        return self.output_convs(self.crp(x))


class _Units(nn.Module):
    """Residual units of two convolutions, each after an activation."""

    def __init__(self, channels: int, units: int, activation: nn.Module):
        super().__init__()
        self.activation = activation
        self.names = [(f"{unit}_1_conv", f"{unit}_2_conv") for unit in range(1, units + 1)]
        for name in sum(self.names, ()):
            self.add_module(name, _conv(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for before, after in self.names:
            hidden = self.get_submodule(before)(self.activation(x))
            x = x + self.get_submodule(after)(self.activation(hidden))
        return x


class _Fusion(nn.Module):
    """All inputs, convolved, enlarged to the sides of the first, and summed."""

    def __init__(self, inputs: Sequence[int], outputs: int):
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, outputs) for channels in inputs)

    def forward(self, *features: Tensor) -> Tensor:
        size = features[0].shape[2:]
        convolved = (conv(x) for conv, x in zip(self.convs, features, strict=True))
        return total(interpolate(x, size=size, mode="bilinear", align_corners=True) for x in convolved)


class _ChainedPooling(nn.Module):
    """Maxima over 5 x 5 pixels, convolved, twice in a row, each added to the features."""

    def __init__(self, channels: int, activation: nn.Module):
        super().__init__()
        self.activation = activation
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        path = x
        for conv in self.convs:
            path = conv(self.pool(path))
            x = x + path
        return x
