r"""Our U-Nets for the diffusers library: a folder with a ``UNet2DModel`` of the same weights, and the scheduler of its SDE.

The scheduler's table is read off the SDE at the times t_i of the labels: beta_i = 1 - alpha(t_i)^2 / alpha(t_{i-1})^2.
Labels that count from t = 0 would begin the chain with no noise at all, so the first time is t_min instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from score_sde.interop.diffusers import PREDICTIONS, require_diffusers
from score_sde.model import ScoreModel
from score_sde.networks.attention import SelfAttention
from score_sde.networks.diffusers_unet import DiffusersUNet
from score_sde.networks.embedding import SinusoidalEmbedding
from score_sde.networks.ncsnpp import NCSNpp
from score_sde.networks.unet import Block, UNet
from score_sde.run import RunError

NO_CONVOLUTION = "its resampling has no convolution"

REMEDY = "; train one with the parameterization epsilon and the time_input label"


def to_diffusers(model: ScoreModel, folder: Path | str) -> None:
    """Save a model as a diffusers pipeline, which ``DDPMPipeline.from_pretrained(folder)`` loads.

    So does ``DDIMPipeline``, unless the variance is learned, which diffusers' DDIM does not know. The scheduler clips nothing.
    A model with classes has one more class there, the last, which stands for no class; the pipelines know no classes, their
    U-Net does. On the way up of a ``ddpm``, diffusers has an attention after every block: the additional ones have zero
    output, hence no effect until they are trained.

    Args:
        model: its network is a ``unet``, ``adm`` or ``ddpm`` over images, or was itself imported from diffusers; it predicts
            epsilon, v or x0, and its SDE preserves the variance.
        folder: a new or empty folder.

    Raises:
        RunError: the folder is not empty, or diffusers cannot express the model; the message says why.
    """
    diffusers, folder = require_diffusers(), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder: give another")
    scheduler = _scheduler(model)
    if isinstance(model.network, DiffusersUNet):
        unet = model.network.unet
    else:
        unet = _unet(model.network, model.data.shape)
        unet = unet if unet.dtype == model.dtype else unet.to(model.dtype)  # not without need: it warns
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder, safe_serialization=True)


def _scheduler(model: ScoreModel) -> Any:
    """The scheduler with the betas of the model's SDE."""
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if model.parameterization not in predictions:
        raise _inexpressible(f"its parameterization is {model.parameterization}, where epsilon, v and x0 are known" + REMEDY)
    if model.data.spread:
        raise _inexpressible("its data is scaled by channel, where images lie in (-1, 1)")
    if model.data.model_range != (-1.0, 1.0):
        raise _inexpressible(f"its data lies in {model.data.model_range}, where images lie in (-1, 1)")
    if model.learned_variance and model.variance != "learned_range":
        raise _inexpressible(f"its learned variance is {model.variance}, where learned_range is known")
    times = torch.arange(model.labels, dtype=torch.float64)
    if model.time_input == "step":
        times = (times + 1) * (model.sde.T / model.labels)
    elif model.time_input == "label":
        times = times * (model.sde.T / (model.labels - 1))
        times[0] = min(model.sde.t_min, float(times[1]) / 2)
    else:
        raise _inexpressible(f"its time_input is {model.time_input}, where label and step are known" + REMEDY)
    try:
        log_alpha, sigma = model.sde.log_alpha(times), model.sde.sigma(times)
    except TypeError as error:
        raise _inexpressible(str(error)) from error
    if not torch.allclose((2 * log_alpha).exp() + sigma**2, torch.ones_like(sigma), rtol=0, atol=1e-6):
        raise _inexpressible(f"{type(model.sde).__name__} does not preserve the variance: alpha^2 + sigma^2 is not 1")
    betas = -torch.expm1(2 * log_alpha.diff(prepend=torch.zeros(1, dtype=torch.float64)))
    return require_diffusers().DDPMScheduler(
        num_train_timesteps=model.labels,
        trained_betas=betas.tolist(),
        prediction_type=predictions[model.parameterization],
        variance_type="learned_range" if model.learned_variance else "fixed_small",
        clip_sample=False,
    )


def _inexpressible(reason: str) -> RunError:
    return RunError(f"diffusers cannot express this model: {reason}")


class _Parts(NamedTuple):
    """A U-Net of ours in the order of diffusers. A stage is a list of blocks, each with the attention after it or None."""

    down: list[list[tuple[Any, SelfAttention | None]]]
    steps_down: list[Any]
    middle: list[Any]
    up: list[list[tuple[Any, SelfAttention | None]]]
    steps_up: list[Any]
    resampled: str
    settings: dict[str, Any]


def _unet(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A ``UNet2DModel`` that does what ``network`` does."""
    if isinstance(network, UNet):
        parts = _parts_of_unet(network, shape)
    elif isinstance(network, NCSNpp):
        parts = _parts_of_ddpm(network)
    else:
        raise _inexpressible(f"its network is a {type(network).__name__}, where unet, adm and ddpm are known")
    settings = {**_common_settings(network, parts, shape), **parts.settings}
    unet = require_diffusers().UNet2DModel(**settings).eval().requires_grad_(False)
    for ours, theirs in _pairs(network, parts, unet):
        tensors = {} if ours is None else dict(ours.named_parameters())
        if ours is None:  # no attention here: one without effect
            nn.init.zeros_(theirs.to_out[0].weight)
            nn.init.zeros_(theirs.to_out[0].bias)
        elif isinstance(ours, SelfAttention):
            theirs.group_norm.load_state_dict(ours.norm.state_dict())
            layers = (theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out[0])
            weights = (*tensors["qkv.weight"].chunk(3), tensors["out.weight"])
            biases = (*tensors["qkv.bias"].chunk(3), tensors["out.bias"])
            for layer, weight, bias in zip(layers, weights, biases, strict=True):
                layer.load_state_dict({"weight": weight, "bias": bias})
        else:
            theirs.load_state_dict(tensors)
    return unet


def _parts_of_unet(network: Any, shape: tuple[int, ...]) -> _Parts:
    if len(shape) != 3:
        raise _inexpressible(f"its data has shape {tuple(shape)}, where images (C, H, W) are known")

    def stage(blocks: Any) -> list:
        return [(block, _attention(block.attention)) for block in blocks]

    count, levels = network.blocks_per_level, len(network.down)
    steps_down = [level[0] for level in network.down[1:]]
    first = network.middle[0]
    by_blocks = any(isinstance(step, Block) for step in steps_down)
    if any(step.conv is None for step in steps_down):
        raise _inexpressible(NO_CONVOLUTION)
    return _Parts(
        down=[stage(level[len(level) - count :]) for level in network.down],
        steps_down=steps_down,
        middle=[first, first.attention, network.middle[1]],
        up=[stage(level[: count + 1]) for level in network.up],
        steps_up=[level[-1] for level in network.up[: levels - 1]],
        resampled="resnet" if by_blocks else "conv",
        settings={"resnet_time_scale_shift": "default" if first.adds else "scale_shift", "downsample_padding": 1},
    )


def _parts_of_ddpm(network: Any) -> _Parts:
    levels = [*network.down, *network.up]
    style = network.middle[0].style
    for wrong, reason in (
        (network.block != "ddpm", "its blocks are of the kind biggan, which neither resample nor sum as diffusers' do"),
        (style.rescale, "its sums are divided by sqrt(2)"),
        (style.fir, "its resampling is filtered"),
        (network.last is None or any(level.feed is not None for level in levels), "it builds or feeds an image by levels"),
        (network.embedding is None, "it is not told the noise level"),
        (not isinstance(style.activation, nn.SiLU), "its activation is not swish"),
    ):
        if wrong:
            raise _inexpressible(reason)
    steps_down = [level.step.resample for level in network.down[:-1]]
    steps_up = [level.step.resample for level in network.up[:-1]]
    if any(step.conv is None for step in steps_down + steps_up):
        raise _inexpressible(NO_CONVOLUTION)

    def stage(level: Any) -> list:
        return [(block, _attention(layer)) for block, layer in level.stage.pairs()]

    return _Parts(
        down=[stage(level) for level in network.down],
        steps_down=steps_down,
        middle=list(network.middle),
        up=[stage(level) for level in network.up],
        steps_up=steps_up,
        resampled="conv",
        settings={
            "resnet_time_scale_shift": "default",
            "downsample_padding": 0,
            "center_input_sample": not network.centered,
        },
    )


def _attention(layer: nn.Module) -> SelfAttention | None:
    return layer if isinstance(layer, SelfAttention) else None


def _common_settings(network: Any, parts: _Parts, shape: tuple[int, ...]) -> dict[str, Any]:
    """The settings of the ``UNet2DModel``, but for those by which our networks differ."""
    features = network.embedding.features
    if not isinstance(features, SinusoidalEmbedding) or features.count < 2:
        raise _inexpressible("its embedding of the noise level is not sinusoidal, of two frequencies or more")
    channels, *sides = shape
    if not all(parts.down):
        raise _inexpressible("it has no blocks on the way down")
    widths = [_layers(level[-1][0])["conv2"].out_channels for level in parts.down]
    if widths[0] != network.first.out_channels:
        raise _inexpressible("its first level is not as wide as its first layer: multipliers must begin with 1")
    if widths[0] != 2 * features.count:
        raise _inexpressible(f"it embeds the noise level by {2 * features.count} numbers, and its first level has {widths[0]}")
    if (told := network.embedding.layers[0].out_features) != 4 * widths[0]:
        raise _inexpressible(f"its embedding is {told} wide, where four times the first level, {4 * widths[0]}, is known")
    if network.embedding.early:
        raise _inexpressible("its classes are added before the layers of the embedding")
    if not isinstance(parts.middle[1], SelfAttention):
        raise _inexpressible("its middle has no attention")
    if any(side % 2 ** (len(widths) - 1) for side in sides):
        raise _inexpressible(f"the sides of {tuple(shape)} cannot be halved {len(widths) - 1} times")
    norms = {(module.num_groups, module.eps) for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if len(norms) > 1:
        counts = ", ".join(str(number) for number, _ in sorted(norms))
        raise _inexpressible(f"its normalizations have different numbers of groups, {counts}")
    ((groups, eps),) = norms
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    head_widths = {layer.out.out_features // layer.heads for layer in attentions}
    single = all(layer.heads == 1 for layer in attentions)
    if len(head_widths) > 1 and not single:
        raise _inexpressible(f"its attention heads have different widths, {', '.join(map(str, sorted(head_widths)))}")
    attends = [any(attention for _, attention in level) for level in parts.down]
    plain = ("DownBlock2D", "UpBlock2D")
    if parts.resampled == "resnet":
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    classes = network.embedding.classes
    return {
        "sample_size": sides[0] if sides[0] == sides[1] else sides,
        "in_channels": channels,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "freq_shift": 0 if features.open_end else 1,
        "flip_sin_to_cos": False,
        "down_block_types": ["AttnDownBlock2D" if attention else plain[0] for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else plain[1] for attention in reversed(attends)],
        "downsample_type": parts.resampled,
        "upsample_type": parts.resampled,
        "block_out_channels": widths,
        "layers_per_block": len(parts.down[0]),
        "dropout": next(module.p for module in network.modules() if isinstance(module, nn.Dropout)),
        "attention_head_dim": None if single else head_widths.pop(),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": eps,
        "num_class_embeds": None if classes is None else classes.num_embeddings,
    }


def _pairs(network: Any, parts: _Parts, unet: Any) -> Iterator[tuple[Any, Any]]:
    """Each of our layers with diffusers' own; None for an attention that we do not have."""
    embedding = network.embedding
    yield embedding.layers[0], unet.time_embedding.linear_1
    yield embedding.layers[2], unet.time_embedding.linear_2
    if embedding.classes is not None:
        yield embedding.classes, unet.class_embedding
    yield network.first, unet.conv_in
    yield network.last[0], unet.conv_norm_out
    yield network.last[2], unet.conv_out
    stages = [*zip(parts.down, unet.down_blocks, strict=True), *zip(parts.up, unet.up_blocks, strict=True)]
    for ours, theirs in stages:
        for number, (block, attention) in enumerate(ours):
            yield from _block_pairs(block, theirs.resnets[number])
            if hasattr(theirs, "attentions"):
                yield attention, theirs.attentions[number]
    before, attention, after = parts.middle
    yield from _block_pairs(before, unet.mid_block.resnets[0])
    yield attention, unet.mid_block.attentions[0]
    yield from _block_pairs(after, unet.mid_block.resnets[1])
    steps = [*zip(parts.steps_down, unet.down_blocks), *zip(parts.steps_up, unet.up_blocks)]  # noqa: B905  (the last has none)
    for step, theirs in steps:
        (layer,) = getattr(theirs, "downsamplers", None) or theirs.upsamplers
        if parts.resampled == "resnet":
            yield from _block_pairs(step, layer)
        else:
            yield step.conv, layer.conv


def _block_pairs(block: Any, resnet: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    for name, layer in _layers(block).items():
        if getattr(resnet, name) is not None:
            yield layer, getattr(resnet, name)


def _layers(block: Any) -> dict[str, Any]:
    """The layers of one of our residual blocks, by diffusers' names."""
    if hasattr(block, "before"):  # of the unet
        names = (block.before[0], block.conv, block.modulation, block.norm, block.after[2], block.shortcut)
    else:
        names = (block.norm_1, block.conv_1, block.modulation, block.norm_2, block.conv_2, block.shortcut)
    return dict(zip(("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"), names, strict=True))
