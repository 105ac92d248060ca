r"""State dicts of guided-diffusion and improved-diffusion (Dhariwal and Nichol 2021; Nichol and Dhariwal 2021).

Settings are one mapping in the keys of the project, in one of its two spellings:

    arguments of the network    ``model_channels``; ``channel_mult`` a list; ``attention_resolutions`` factors of downsampling
    flags of the scripts        ``num_channels``; ``channel_mult`` a word; ``attention_resolutions`` a word of image sizes

Flags that are left out have the scripts' defaults. Beside either spelling stand the flags of the chain, ``diffusion_steps``,
``noise_schedule``, ``timestep_respacing``, ``rescale_timesteps``, ``predict_xstart``, or all ``betas``. Flags of the loss and
``sigma_small`` are allowed and change nothing. The arguments of improved-diffusion name no ``image_size``: give it too.

A chain of N betas is ``TabulatedSDE``, whose step k (from 0) ends at t = (k + 1) / N. The network is told k, or 1000 k / N
where the times are rescaled. Its data was trained as k / 127.5 - 1, without dequantization.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from score_sde.data import DataSpec
from score_sde.interop.reading import Entry, Weights, cosines_first, fill, plain, setting, state_dict
from score_sde.model import ScoreModel
from score_sde.networks.attention import SelfAttention
from score_sde.networks.classifier import UNetClassifier
from score_sde.networks.unet import Block, Encoder, Step
from score_sde.run import RunError, build_model
from score_sde.tables import did_you_mean


def from_guided_diffusion(weights: Weights, settings: Mapping[str, Any]) -> ScoreModel:
    """A U-Net of guided-diffusion as a model for every solver and the likelihood, in evaluation mode.

    >>> model = from_guided_diffusion("64x64_diffusion.pt", {"image_size": 64, "class_cond": True, ...})

    Args:
        weights: a state dict of its ``UNetModel``, or the file of one; nothing in a file is executed.
        settings: what the model is; this module says in which keys. The scripts know 1000 classes alone; with flags, the number
            of classes is that of the weights.

    Raises:
        RunError: a setting is missing, unknown, or of a kind that cannot be read.
        CheckpointError: the weights are damaged, or do not fit the settings.
    """
    return _model(GUIDED, weights, settings)


def from_improved_diffusion(weights: Weights, settings: Mapping[str, Any]) -> ScoreModel:
    """A U-Net of improved-diffusion, as ``from_guided_diffusion``. By its scripts' defaults the times are rescaled."""
    return _model(IMPROVED, weights, settings)


def classifier_from_guided_diffusion(weights: Weights, settings: Mapping[str, Any]) -> UNetClassifier:
    """A classifier of guided-diffusion as a network of ours, in evaluation mode.

    It is called as ``classifier(x, step)`` with the step k, times 1000 / N where the times are rescaled, and gives logits.

    Args:
        weights: a state dict of its ``EncoderUNetModel``, or the file of one; nothing in a file is executed.
        settings: the arguments of that network, or the flags ``classifier_...`` of the scripts, as for a U-Net.

    Raises:
        RunError: a setting is missing, unknown, or of a kind that cannot be read.
        CheckpointError: the weights are damaged, or do not fit the settings.
    """
    tensors, source = state_dict(weights)
    last = tensors.get("out.2.c_proj.weight", tensors.get("out.3.weight"))
    arguments = _classifier_arguments(settings, 1000 if last is None else len(last))
    pools = {"attention": "attention", "adaptive": "mean"}
    pool = setting(arguments, "pool", str)
    if pool not in pools:
        raise RunError(f"unknown pool {pool!r} in the settings; {' and '.join(pools)} can be read")
    if pool == "attention" and setting(arguments, "num_head_channels", int) == -1:
        raise RunError("a pool by attention needs num_head_channels")
    options: dict[str, Any] = _encoder_options(GUIDED, arguments) | {"pool": pools[pool]}
    options.pop("heads_up", None)  # there is no way up
    shape = _shape(arguments)
    try:
        network = UNetClassifier(shape, setting(arguments, "out_channels", int), **options)
    except ValueError as error:
        raise RunError(f"there is no classifier of these settings: {error}") from error
    fill(network, [*_encoder_entries(network, _legacy(arguments)), *_pool_entries(network)], tensors, source)
    return network.eval().requires_grad_(False)


def guided_diffusion_config(settings: Mapping[str, Any], classes: int = 1000) -> tuple[dict[str, Any], DataSpec]:
    """Our config, and the description of the data, for settings of guided-diffusion.

    Args:
        settings: as ``from_guided_diffusion`` has them.
        classes: the number of classes that the flag ``class_cond`` stands for.

    Raises:
        RunError: as ``from_guided_diffusion`` does.
    """
    return _config(GUIDED, settings, classes)


def improved_diffusion_config(settings: Mapping[str, Any], classes: int = 1000) -> tuple[dict[str, Any], DataSpec]:
    """Our config, and the description of the data, for settings of improved-diffusion, as ``guided_diffusion_config``."""
    return _config(IMPROVED, settings, classes)


# settings


@dataclass(frozen=True)
class _Project:
    """The settings of a project with their defaults; None where there is none, or where None is one.

    ``multipliers`` are those of each image size. With ``wide_stem`` the first convolution is as wide as the first level.
    """

    name: str
    arguments: Mapping[str, Any]
    flags: Mapping[str, Any]
    multipliers: Mapping[int, tuple[float, ...]]
    wide_stem: bool


ARGUMENTS = {
    "image_size": None,
    "in_channels": None,
    "model_channels": None,
    "out_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": None,
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "num_heads": 1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
}
LATER_ARGUMENTS = {"num_head_channels": -1, "resblock_updown": False, "use_new_attention_order": False, "use_fp16": False}
FLAGS = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "learn_sigma": False,
}
CHAIN = {
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "betas": None,
    "rescale_timesteps": False,
    "predict_xstart": False,
    "timestep_respacing": "",
    "sigma_small": False,
    "use_kl": False,
    "rescale_learned_sigmas": False,
}
GUIDED = _Project(
    "guided-diffusion",
    ARGUMENTS | LATER_ARGUMENTS | CHAIN,
    FLAGS | LATER_ARGUMENTS | {"channel_mult": ""} | CHAIN,
    {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)},
    wide_stem=True,
)
IMPROVED = _Project(
    "improved-diffusion",
    ARGUMENTS | CHAIN | {"rescale_timesteps": True},
    FLAGS | CHAIN | {"rescale_timesteps": True},
    {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)},
    wide_stem=False,
)

CLASSIFIER_ARGUMENTS = {key: value for key, value in GUIDED.arguments.items() if key != "num_classes"} | {"pool": "adaptive"}
CLASSIFIER_FLAGS = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "classifier_use_fp16": False,
    "learn_sigma": False,
} | CHAIN


def _config(project: _Project, settings: Mapping[str, Any], classes: int) -> tuple[dict[str, Any], DataSpec]:
    arguments = _arguments(project, settings, classes)
    shape, outputs = _shape(arguments), setting(arguments, "out_channels", int)
    channels = shape[0]
    if outputs not in (channels, 2 * channels):
        raise RunError(f"out_channels is {outputs}; it must be {channels}, or twice that for a learned variance")
    network = _encoder_options(project, arguments) | {"learned_variance": outputs != channels}
    if arguments["num_classes"] is not None:
        network |= {"classes": setting(arguments, "num_classes", int), "no_class": False}
    sde, model = _chain(arguments)
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {"levels": 256, "dequantize": False}},
        "sde": sde,
        "network": {"name": "adm", "adm": network},
        "model": model,
    }
    return config, DataSpec(shape, levels=256, dequantize=False)


def _arguments(project: _Project, settings: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The arguments of the network, with those of the chain, in the spelling of the network."""
    given, by_arguments = _spelled(project.name, settings, project.arguments, project.flags)
    if by_arguments:
        return given
    word = setting(given, "channel_mult", str, "")
    return given | {
        "in_channels": 3,
        "out_channels": 6 if setting(given, "learn_sigma", bool) else 3,
        "model_channels": setting(given, "num_channels", int),
        "channel_mult": _numbers(given, "channel_mult") if word else _multipliers(project, given),
        "attention_resolutions": _factors(given, "attention_resolutions"),
        "num_classes": classes if setting(given, "class_cond", bool) else None,
        "conv_resample": True,
        "dims": 2,
    }


def _classifier_arguments(settings: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The arguments of a classifier, in the spelling of the network."""
    given, by_arguments = _spelled("guided-diffusion", settings, CLASSIFIER_ARGUMENTS, CLASSIFIER_FLAGS)
    if by_arguments:
        return given
    return CLASSIFIER_ARGUMENTS | {
        "image_size": given["image_size"],
        "in_channels": 3,
        "out_channels": classes,
        "model_channels": setting(given, "classifier_width", int),
        "num_res_blocks": setting(given, "classifier_depth", int),
        "channel_mult": _multipliers(GUIDED, given),
        "attention_resolutions": _factors(given, "classifier_attention_resolutions"),
        "num_head_channels": 64,
        "use_scale_shift_norm": setting(given, "classifier_use_scale_shift_norm", bool),
        "resblock_updown": setting(given, "classifier_resblock_updown", bool),
        "pool": setting(given, "classifier_pool", str),
    }


def _spelled(
    project: str, settings: Mapping[str, Any], arguments: Mapping[str, Any], flags: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The settings with their defaults, and whether they are arguments."""
    by_arguments = "model_channels" in settings
    spelling, known = ("arguments", arguments) if by_arguments else ("flags", flags)
    for key in settings:
        if key not in known:
            kinds = f"{project}'s {spelling} have no {key!r}{did_you_mean(key, known)}"
            raise RunError(f"{kinds}; settings with model_channels are arguments, all others flags")
    return {**known, **settings}, by_arguments


def _multipliers(project: _Project, flags: Mapping[str, Any]) -> tuple[float, ...]:
    """Those that the project has for an image size."""
    size = setting(flags, "image_size", int)
    if size not in project.multipliers:
        raise RunError(f"{project.name} has no channel_mult of its own for image_size {size}: give it, or the arguments")
    return project.multipliers[size]


def _factors(flags: Mapping[str, Any], key: str) -> list[int]:
    """The factors of downsampling at which the image has the sizes in a word."""
    sizes = _numbers(flags, key)
    if min(sizes) < 1:
        raise RunError(f"{key} must be at least 1, got {flags[key]!r}")
    return [setting(flags, "image_size", int) // int(size) for size in sizes]


def _shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    channels, size, dims = (setting(arguments, key, int) for key in ("in_channels", "image_size", "dims"))
    if dims not in (1, 2) or min(channels, size) < 1:
        given = f"dims {dims}, in_channels {channels} and image_size {size}"
        raise RunError(f"networks of dims 1 and 2, of in_channels and image_size above 0, can be read, got {given}")
    return channels, *[size] * dims


def _numbers(flags: Mapping[str, Any], key: str) -> list[float]:
    """Numbers in a word, as ``"1,2,3"``."""
    word = setting(flags, key, str)
    try:
        return [float(part) if "." in part else int(part) for part in word.split(",")]
    except ValueError:
        raise RunError(f"{key!r} must be numbers with commas between them, got {word!r}") from None


def _encoder_options(project: _Project, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options of our network that say what its blocks are, and how many."""
    width, multipliers = setting(arguments, "model_channels", int), tuple(setting(arguments, "channel_mult", list))
    if not multipliers or not all(type(number) in (int, float) and number > 0 for number in multipliers):
        raise RunError(f"channel_mult must be numbers above 0, got {list(multipliers)}")
    factors = setting(arguments, "attention_resolutions", list)
    attention = tuple(level for level in range(len(multipliers)) if 2**level in factors)
    by_blocks = setting(arguments, "resblock_updown", bool, False)
    resample = "block" if by_blocks else "conv" if setting(arguments, "conv_resample", bool) else "pool"
    for key in ("use_checkpoint", "use_fp16"):  # how it is computed, not what
        setting(arguments, key, bool, False)
    return {
        "width": width,
        "multipliers": multipliers,
        "blocks": setting(arguments, "num_res_blocks", int),
        "attention": attention,
        **_heads(arguments, {int(multipliers[level] * width) for level in (*attention, len(multipliers) - 1)}),
        "dropout": setting(arguments, "dropout", float),
        "resample": resample,
        "modulation": "scale_shift" if setting(arguments, "use_scale_shift_norm", bool) else "add",
        "embedding": "transformer",
        "stem": int(multipliers[0] * width) if project.wide_stem else 0,
        "group_width": 1,
    }


def _heads(arguments: Mapping[str, Any], widths: set[int]) -> dict[str, int]:
    """The options of the attention in levels of these numbers of channels."""
    names = ("num_head_channels", "num_heads", "num_heads_upsample")
    channels, count, upward = (setting(arguments, name, int, -1) for name in names)
    if min(channels, upward) < -1 or 0 in (channels, count, upward) or (channels == -1 and count < 1):
        raise RunError(f"{', '.join(names)} must be at least 1, or -1 for none, got {channels}, {count}, {upward}")
    if channels == -1:
        return {"heads": count, "heads_up": max(0, upward)}
    for width in widths:
        if width % channels:
            raise RunError(f"num_head_channels is {channels}, which does not divide the {width} channels of a level")
    return {"head_width": channels}


def _chain(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections ``sde`` and ``model`` of our config."""
    for key in ("sigma_small", "use_kl", "rescale_learned_sigmas"):  # of sampling and of the loss
        setting(settings, key, bool)
    if settings["betas"] is not None:
        betas = setting(settings, "betas", list)
        steps, table = len(betas), {"betas": betas}
    else:
        steps, schedule = setting(settings, "diffusion_steps", int), setting(settings, "noise_schedule", str)
        if steps < 2:
            raise RunError(f"diffusion_steps must be at least 2, got {steps}")
        table = {"steps": steps, "schedule": schedule}
        if schedule == "linear":
            scale = 1000 / steps
            if scale * 0.02 >= 1:
                raise RunError(
                    f"the linear schedule of {steps} steps ends at a beta of {scale * 0.02:g}; it needs more than 20"
                )
            table |= {"beta_start": scale * 0.0001, "beta_end": scale * 0.02}
        elif schedule != "cosine":
            raise RunError(f"unknown noise_schedule {schedule!r} in the settings; linear and cosine are known")
    rescaled = setting(settings, "rescale_timesteps", bool) and steps != 1000
    table |= {"respacing": setting(settings, "timestep_respacing", str), "t_min": 1 / steps}
    return {"name": "ddpm", "ddpm": table}, {
        "parameterization": "x0" if setting(settings, "predict_xstart", bool) else "epsilon",
        "time_input": "rescaled_step" if rescaled else "step",
        "labels": steps,
        "scale_input": False,
        "sigma_data": 0.5,
    }


# weights


def _model(project: _Project, weights: Weights, settings: Mapping[str, Any]) -> ScoreModel:
    tensors, source = state_dict(weights)
    classes = tensors.get("label_emb.weight")
    config, spec = _config(project, settings, 1000 if classes is None else len(classes))
    model = build_model(config, spec)
    network: Any = model.network
    entries = [*_encoder_entries(network, _legacy(settings)), *_decoder_entries(network, _legacy(settings))]
    if network.classes:
        entries.append(Entry("embedding.classes.weight", ["label_emb.weight"]))
    fill(network, entries, tensors, source)
    return model.eval().requires_grad_(False)


def _legacy(settings: Mapping[str, Any]) -> bool:
    """Whether the attention has its channels in the first order, which improved-diffusion always has."""
    return not setting(settings, "use_new_attention_order", bool, False)


def _encoder_entries(network: Encoder, legacy: bool) -> Iterator[Entry]:
    """The tensors of the embedding, of the way down and of the middle."""
    yield from cosines_first("embedding.layers.0", "time_embed.0")
    yield from plain("embedding.layers.2", "time_embed.2")
    yield from plain("first", "input_blocks.0.0")
    number = 1
    for level, stage in enumerate(network.down):
        for position, layer in enumerate(stage):
            yield from _layer_entries(layer, f"down.{level}.{position}", f"input_blocks.{number}", 0, legacy)
            number += 1
    before, after = network.middle
    yield from _layer_entries(before, "middle.0", "middle_block", 0, legacy)
    yield from _layer_entries(after, "middle.1", "middle_block", 2, legacy)


def _decoder_entries(network: Any, legacy: bool) -> Iterator[Entry]:
    """The tensors of the way up and of the end. What leads to the next level belongs to the last block there."""
    number = -1
    for level, stage in enumerate(network.up):
        place = 0
        for position, layer in enumerate(stage):
            if position <= network.blocks_per_level:
                number, place = number + 1, 0
            yield from _layer_entries(layer, f"up.{level}.{position}", f"output_blocks.{number}", place, legacy)
            place = 2 if isinstance(layer, Block) and isinstance(layer.attention, SelfAttention) else 1
    yield from plain("last.0", "out.0")
    yield from plain("last.2", "out.2")


def _pool_entries(network: UNetClassifier) -> Iterator[Entry]:
    """The tensors of the end of a classifier."""
    yield from plain("norm", "out.0")
    if network.pool is None:
        yield Entry(
            "last.weight",
            ["out.3.weight"],
            lambda tensors: tensors[0].flatten(1),
            lambda weight: [weight.reshape(*weight.shape, *[1] * (network.first.weight.ndim - 2))],
        )
        yield Entry("last.bias", ["out.3.bias"])
        return
    yield Entry(
        "pool.position",
        ["out.2.positional_embedding"],
        lambda tensors: tensors[0].T,
        lambda position: [position.T],
    )
    for name in ("weight", "bias"):
        yield _rows(f"pool.qkv.{name}", f"out.2.qkv_proj.{name}")
        yield _rows(f"last.{name}", f"out.2.c_proj.{name}")


def _layer_entries(layer: Block | Step, own: str, other: str, place: int, legacy: bool) -> Iterator[Entry]:
    """The tensors of a block, with the attention after it, or of a step between levels, at a place in a list there."""
    if isinstance(layer, Step):
        if layer.conv is not None:
            yield from plain(f"{own}.conv", f"{other}.{place}.{'op' if layer.direction == 'down' else 'conv'}")
        return
    names = {"before.0": "in_layers.0", "conv": "in_layers.2", "modulation": "emb_layers.1", "norm": "out_layers.0"}
    names |= {"after.2": "out_layers.3"}
    if not isinstance(layer.shortcut, nn.Identity):
        names |= {"shortcut": "skip_connection"}
    for ours, theirs in names.items():
        yield from plain(f"{own}.{ours}", f"{other}.{place}.{theirs}")
    if isinstance(layer.attention, SelfAttention):
        own, other, heads = f"{own}.attention", f"{other}.{place + 1}", layer.attention.heads
        yield from plain(f"{own}.norm", f"{other}.norm")
        for name in ("weight", "bias"):
            yield _rows(f"{own}.qkv.{name}", f"{other}.qkv.{name}", heads if legacy else 0)
            yield _rows(f"{own}.out.{name}", f"{other}.proj_out.{name}")


def _rows(own: str, other: str, heads: int = 0) -> Entry:
    """A weight or bias of a linear layer, there a convolution of one tap; with ``heads`` its rows are heads x (q, k, v)."""

    def join(tensors: list[Tensor]) -> Tensor:
        rows = tensors[0].flatten(1) if own.endswith("weight") else tensors[0]
        return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2) if heads else rows

    def split(rows: Tensor) -> list[Tensor]:
        rows = rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2) if heads else rows
        return [rows[..., None] if own.endswith("weight") else rows]

    return Entry(own, [other], join, split)
