r"""U-Nets of the diffusers library: a ``UNet2DModel`` with its scheduler as a model of ours, and our U-Nets as one of theirs.

A scheduler's table beta_0 ... beta_{N-1} is the discrete chain of ``TabulatedSDE``: step i (from 0) of the U-Net is the time
t = (i + 1) / N, where alpha^2 is the product of 1 - beta up to and including beta_i. Its ``prediction_type`` names what the
U-Net predicts: epsilon, x0 (``sample``) or v = alpha epsilon - sigma x0 (``v_prediction``). Images lie in [-1, 1].

On the way out the table is read off the SDE at the times t_i of the labels: beta_i = 1 - alpha(t_i)^2 / alpha(t_{i-1})^2. Those
that count from t = 0 would begin the chain with no noise at all, so the first time is t_min instead.

Weights are read from safetensors files alone, by their names, and settings from JSON: nothing in a folder is executed, and
nothing is downloaded.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from score_sde.data import DataSpec
from score_sde.model import ScoreModel
from score_sde.networks.attention import SelfAttention
from score_sde.networks.diffusers_unet import DiffusersUNet
from score_sde.networks.embedding import SinusoidalEmbedding
from score_sde.networks.ncsnpp import NCSNpp
from score_sde.networks.unet import UNet
from score_sde.run import RunError
from score_sde.sdes import ddpm_schedule

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
"""A scheduler's ``prediction_type`` -> our parameterization."""

WEIGHTS = "diffusion_pytorch_model.safetensors"

# in


def from_diffusers(unet: Any, scheduler: Any = None, *, data: DataSpec | None = None) -> ScoreModel:
    """A ``UNet2DModel`` with its scheduler as a model for every solver and the likelihood.

    Args:
        unet: a ``UNet2DModel``, a pipeline of it and a scheduler, or the folder in which either was saved. An object is used as
            it is, neither copied nor put into evaluation mode.
        scheduler: the scheduler it was trained with, or its folder; any with a table of betas. By default the pipeline's own.
        data: what the data is; by default integers from 0 to 255 in [-1, 1], of the shape that the U-Net names.

    Returns:
        The model. ``cond`` is the class label where the U-Net has classes; it then needs one for every sample.

    Raises:
        RunError: a folder or an object is not what it should be, or the model is of a kind that cannot be used; the message
            says which.
    """
    diffusers = _diffusers()
    if isinstance(unet, str | Path):
        network, own = _read_unet(Path(unet), data)
    else:
        network, own = _wrapped(unet, data)
    if scheduler is None:
        scheduler = own
    if isinstance(scheduler, str | Path):
        scheduler = _read_scheduler(Path(scheduler))
    if scheduler is None:
        raise RunError("the betas are not known: a UNet2DModel alone does not say them, so give its scheduler too")
    if not isinstance(scheduler, diffusers.SchedulerMixin):
        raise RunError(f"the scheduler must be one of diffusers', or the folder of one, got a {type(scheduler).__name__}")
    kind = type(scheduler).__name__
    prediction = scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise RunError(f"the {kind} has prediction_type {prediction!r}; {', '.join(PREDICTIONS)} can be used")
    if network.learned_variance and scheduler.config.get("variance_type") == "learned":
        raise RunError("the U-Net predicts the variance itself (variance_type learned); only learned_range can be used")
    if network.unet.config.time_embedding_type != "positional":
        raise RunError("the U-Net embeds the logarithm of a noise level, not a step of a table of betas: it is of a VE model")
    betas = _betas(scheduler)
    return ScoreModel(
        network,
        ddpm_schedule(betas=betas, t_min=1 / len(betas)),
        data or DataSpec(_shape(network.unet.config), levels=256),
        parameterization=PREDICTIONS[prediction],
        time_input="step",
        labels=len(betas),
        scale_input=False,
    )


def import_diffusers(path: Path | str, scheduler: Path | str | None = None) -> tuple[dict[str, Any], ScoreModel]:
    """The config of a run, and the model with its weights, from the folder of a saved pipeline or ``UNet2DModel``.

    Args:
        path: the folder.
        scheduler: the folder of its scheduler; not needed for a pipeline.

    Raises:
        RunError: as ``from_diffusers`` does.
    """
    model = from_diffusers(Path(path), scheduler)
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {"levels": 256}},
        "sde": {"name": "ddpm", "ddpm": {"betas": list(model.sde.betas), "t_min": model.sde.t_min}},
        "network": {"name": "diffusers", "diffusers": {"settings": model.network.settings}},
        "model": {
            "parameterization": model.parameterization,
            "time_input": model.time_input,
            "labels": model.labels,
            "scale_input": model.scale_input,
            "sigma_data": model.sigma_data,
        },
    }
    return config, model.eval().requires_grad_(False)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise RunError("diffusers is needed: pip install 'score_sde[diffusers]'") from error
    return diffusers


def _wrapped(given: Any, data: DataSpec | None) -> tuple[DiffusersUNet, Any]:
    """The network around an object, and the scheduler where that is a pipeline."""
    diffusers, own, unet = _diffusers(), None, given
    if isinstance(given, diffusers.DiffusionPipeline):
        _only_unet_and_scheduler(given.components, type(given).__name__)
        unet, own = given.unet, given.scheduler
    if not isinstance(unet, diffusers.UNet2DModel):
        raise RunError(f"a UNet2DModel, a pipeline of one, or the folder of either is needed, got a {type(unet).__name__}")
    try:
        return DiffusersUNet.of(unet, data.shape if data else _shape(unet.config)), own
    except ValueError as error:
        raise RunError(f"the U-Net cannot be used: {error}") from error


def _read_unet(folder: Path, data: DataSpec | None) -> tuple[DiffusersUNet, Path | None]:
    """The network in a folder, and the folder of its scheduler where it is that of a pipeline."""
    if not folder.is_dir():
        raise RunError(f"{folder} not found: give the folder of a saved pipeline or UNet2DModel; nothing is downloaded")
    own = None
    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        _only_unet_and_scheduler([name for name in index if not name.startswith("_")], str(folder))
        folder, own = folder / "unet", folder / "scheduler"
    settings = _read_json(folder / "config.json")
    kind = settings.get("_class_name")
    if kind != "UNet2DModel":
        raise RunError(f"{folder} holds a {kind}, not a UNet2DModel")
    try:
        settings = {key: value for key, value in settings.items() if not key.startswith("_")}
        known = inspect.signature(_diffusers().UNet2DModel.__init__).parameters
        defaults = {name: known[name].default for name in ("in_channels", "out_channels", "sample_size")}
        shape = data.shape if data else _shape({**defaults, **settings})
        network = DiffusersUNet(shape, settings=json.dumps({**defaults, **settings}))
    except ValueError as error:
        raise RunError(f"{folder}: {error}") from error
    try:
        network.unet.load_state_dict(_read_weights(folder))
    except RuntimeError as error:
        raise RunError(f"{folder}: the weights do not fit the config.json: {' '.join(str(error).split())[:300]}") from error
    return network.eval(), own


def _only_unet_and_scheduler(parts: Any, source: str) -> None:
    more = sorted(set(parts) - {"unet", "scheduler"})
    if more or "unet" not in parts:
        said = f"has {', '.join(more)} too, so its U-Net does not see images" if more else "has no U-Net"
        raise RunError(f"{source} {said}: give a pipeline of a UNet2DModel and a scheduler")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; diffusers' save_pretrained writes it") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold an object, it holds a {type(content).__name__}")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved U-Net, in one file or in several; attention layers of old files have other names."""
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        old = next(folder.glob("*.bin"), None)
        if old is None:
            raise RunError(f"{folder} has no {WEIGHTS}")
        raise RunError(
            f"{old} is a pickle, which may run code, and was not read: load the model where you trust it, and save it again by "
            "save_pretrained(folder, safe_serialization=True)"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            part = load_file(file)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file} is damaged or not a safetensors file: {error}") from error
        if twice := set(part) & set(tensors):
            raise RunError(f"{folder} has {min(twice)} in several files: keep those of one variant")
        tensors |= part
    renamed = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def _read_scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder, or in that of a pipeline."""
    if (folder / "scheduler").is_dir():
        folder = folder / "scheduler"
    if not folder.is_dir():
        raise RunError(f"{folder} not found: give the folder of a saved scheduler")
    diffusers, settings = _diffusers(), _read_json(folder / "scheduler_config.json")
    name = settings.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not inspect.isclass(kind) or not issubclass(kind, diffusers.SchedulerMixin):
        raise RunError(f"{folder} holds a {name}, which is not one of diffusers' schedulers")
    try:
        return kind.from_config(settings)
    except Exception as error:  # it looks at little beforehand: whatever it stumbles over
        raise RunError(f"{folder}: {name} refuses its settings: {' '.join(str(error).split())[:200]}") from error


def _betas(scheduler: Any) -> tuple[float, ...]:
    betas = getattr(scheduler, "betas", None)
    if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) < 2:
        raise RunError(f"the {type(scheduler).__name__} has no table of betas; only variance-preserving models have one")
    betas = tuple(betas.double().tolist())
    if betas[-1] >= 1:
        raise RunError("the last beta is 1, so no signal is left at T (zero terminal SNR); every beta must be below 1")
    if not all(0 < beta < 1 for beta in betas):
        raise RunError("the scheduler's betas must lie between 0 and 1")
    return betas


def _shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape of the images that a U-Net was made for."""
    size = config.get("sample_size")
    if size is None:
        raise RunError("the U-Net's sample_size is not set: give data=DataSpec((C, H, W), levels=256)")
    return config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size))


# out


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
    diffusers, folder = _diffusers(), Path(folder)
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
        raise _inexpressible(f"its parameterization is {model.parameterization}, where epsilon, v and x0 are known")
    if model.data.model_range != (-1.0, 1.0):
        raise _inexpressible(f"its data lies in {model.data.model_range}, where images lie in (-1, 1)")
    times = torch.arange(model.labels, dtype=torch.float64)
    if model.time_input == "step":
        times = (times + 1) * (model.sde.T / model.labels)
    elif model.time_input == "label":
        times = times * (model.sde.T / (model.labels - 1))
        times[0] = min(model.sde.t_min, float(times[1]) / 2)
    else:
        raise _inexpressible(f"its time_input is {model.time_input}, where label and step are known")
    try:
        log_alpha, sigma = model.sde.log_alpha(times), model.sde.sigma(times)
    except TypeError as error:
        raise _inexpressible(str(error)) from error
    if not torch.allclose((2 * log_alpha).exp() + sigma**2, torch.ones_like(sigma), rtol=0, atol=1e-6):
        raise _inexpressible(f"{type(model.sde).__name__} does not preserve the variance: alpha^2 + sigma^2 is not 1")
    betas = -torch.expm1(2 * log_alpha.diff(prepend=torch.zeros(1, dtype=torch.float64)))
    return _diffusers().DDPMScheduler(
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

    down: list[list[tuple[nn.Module, SelfAttention | None]]]
    steps_down: list[nn.Module]
    middle: list[nn.Module]
    up: list[list[tuple[nn.Module, SelfAttention | None]]]
    steps_up: list[nn.Module]
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
    unet = _diffusers().UNet2DModel(**settings).eval().requires_grad_(False)
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
                layer.load_state_dict({"weight": weight.flatten(1), "bias": bias})
        else:
            theirs.load_state_dict(tensors)
    return unet


def _parts_of_unet(network: UNet, shape: tuple[int, ...]) -> _Parts:
    if len(shape) != 3:
        raise _inexpressible(f"its data has shape {tuple(shape)}, where images (C, H, W) are known")

    def stage(blocks: nn.ModuleList) -> list:
        return [(block, _attention(block.attention)) for block in blocks]

    count, levels = network.blocks_per_level, len(network.down)
    steps_down = [level[0] for level in network.down[1:]]
    first = network.middle[0]
    by_blocks = any(hasattr(step, "modulation") for step in steps_down)
    return _Parts(
        down=[stage(level[-count:]) for level in network.down],
        steps_down=steps_down,
        middle=[first, first.attention, network.middle[1]],
        up=[stage(level[: count + 1]) for level in network.up],
        steps_up=[level[-1] for level in network.up[: levels - 1]],
        resampled="resnet" if by_blocks else "conv",
        settings={"resnet_time_scale_shift": "scale_shift", "downsample_padding": 1},
    )


def _parts_of_ddpm(network: NCSNpp) -> _Parts:
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
        raise _inexpressible("its resampling has no convolution")

    def stage(level: nn.Module) -> list:
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


def _common_settings(network: UNet | NCSNpp, parts: _Parts, shape: tuple[int, ...]) -> dict[str, Any]:
    """The settings of the ``UNet2DModel``, but for those by which our networks differ."""
    if not isinstance(network.embedding.features, SinusoidalEmbedding) or len(network.embedding.features.frequencies) < 2:
        raise _inexpressible("its embedding of the noise level is not sinusoidal, of two frequencies or more")
    channels, *sides = shape
    widths = [_layers(level[-1][0])["conv2"].out_channels for level in parts.down]
    if widths[0] != network.first.out_channels:
        raise _inexpressible("its first level is not as wide as its first layer: multipliers must begin with 1")
    if any(side % 2 ** (len(widths) - 1) for side in sides):
        raise _inexpressible(f"the sides of {tuple(shape)} cannot be halved {len(widths) - 1} times")
    norms = {(module.num_groups, module.eps) for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if len(norms) > 1:
        counts = ", ".join(str(number) for number, _ in sorted(norms))
        raise _inexpressible(f"its normalizations have different numbers of groups, {counts}")
    ((groups, eps),) = norms
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    head_widths = {layer.out.out_channels // layer.heads for layer in attentions}
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
        "freq_shift": 1,
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


def _pairs(network: UNet | NCSNpp, parts: _Parts, unet: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module]]:
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


def _block_pairs(block: nn.Module, resnet: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for name, layer in _layers(block).items():
        if getattr(resnet, name) is not None:
            yield layer, getattr(resnet, name)


def _layers(block: nn.Module) -> dict[str, nn.Module]:
    """The layers of one of our residual blocks, by diffusers' names."""
    if hasattr(block, "before"):  # of the unet
        names = (block.before[0], block.conv, block.modulation, block.norm, block.after[2], block.shortcut)
    else:
        names = (block.norm_1, block.conv_1, block.modulation, block.norm_2, block.conv_2, block.shortcut)
    return dict(zip(("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"), names, strict=True))
