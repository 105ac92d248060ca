r"""State dicts of EDM (Karras et al. 2022): a network, and how it is preconditioned.

Settings are the arguments of that project's classes, with their defaults, and ``class``, the name of the preconditioning. With
y = x / alpha the denoiser is D(y, rho) = c_skip y + c_out F(c_in y, c_noise) at the noise level rho = sigma / alpha, and the
score in y is (D - y) / rho^2. Each preconditioning is a model of ours (Karras et al. 2022, Table 1):

    EDMPrecond      VE from 0.002 to 80, where its solvers run     parameterization edm, c_noise = ln(rho) / 4
    VEPrecond       VE from sigma_min to sigma_max                 F is sigma score, of x itself, c_noise = ln(sigma / 2)
    VPPrecond       VP of beta_min and beta_d                      F is epsilon, c_noise = (M - 1) t
    iDDPMPrecond    the cosine table of M betas                    F is epsilon, c_noise the nearest step of the table

The networks were trained on k / 127.5 - 1, without dequantization. Classes are integers here, where they are vectors of 0 and 1
there; no class is the vector of 0. What tells a network how its data was augmented is left away, as in that project's sampling.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from score_sde.data import DataSpec
from score_sde.interop.reading import (
    Entry,
    Weights,
    cosines_first,
    fill,
    plain,
    require_fixed,
    require_shapes,
    setting,
    state_dict,
    with_defaults,
)
from score_sde.model import ScoreModel
from score_sde.networks.attention import SelfAttention
from score_sde.networks.embedding import FourierEmbedding
from score_sde.networks.ncsnpp import Block as SongBlock
from score_sde.networks.ncsnpp import InputResidual, InputSkip, OutputSkip
from score_sde.networks.unet import Block as DhariwalBlock
from score_sde.run import RunError, build_model
from score_sde.tables import did_you_mean

COMMON = {"class": None, "img_resolution": None, "img_channels": None, "label_dim": 0, "use_fp16": False}
PRECONDITIONINGS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5, "model_type": "DhariwalUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0, "model_type": "SongUNet"},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
}
"""The settings of each preconditioning with their defaults."""

NETWORKS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "augment_dim": 0,
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "channel_mult_emb": 4,
        "num_blocks": 4,
        "attn_resolutions": (16,),
        "dropout": 0.1,
        "label_dropout": 0.0,
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": (1, 1),
    },
    "DhariwalUNet": {
        "augment_dim": 0,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "channel_mult_emb": 4,
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
        "dropout": 0.1,
        "label_dropout": 0.0,
    },
}
"""The settings of each network with their defaults."""


ENCODERS = {"standard": "none", "skip": "input_skip", "residual": "residual"}
DECODERS = {"standard": "none", "skip": "output_skip"}
EMBEDDINGS = {"positional": "sinusoidal", "fourier": "fourier"}
"""What SongUNet calls the ways of an image beside the features and the embeddings, and what we do."""


def from_edm(weights: Weights, settings: Mapping[str, Any]) -> ScoreModel:
    """A network of EDM as a model for every solver and the likelihood, in evaluation mode.

    >>> model = from_edm("weights.pt", {"class": "EDMPrecond", "img_resolution": 32, "img_channels": 3, ...})

    Args:
        weights: a state dict of a preconditioned network, or the file of one; nothing in a file is executed.
        settings: what the model is: ``class``, and the arguments of that class and of its network.

    Raises:
        RunError: a setting is missing, unknown, or of a kind that cannot be read.
        CheckpointError: the weights are damaged, or do not fit the settings.
    """
    tensors, source = state_dict(weights)
    given = _given(settings)
    model = build_model(*edm_config(settings))
    network: Any = model.network
    songs = given["model_type"] == "SongUNet"
    layers = list((_song_layers if songs else _dhariwal_layers)(network, given["img_resolution"]))
    fixed = {"u": _levels(given)} if given["class"] == "iDDPMPrecond" else {}
    fixed |= {f"model.{other}.resample_filter": _filter(given) for _, _, other in layers if other.endswith(FILTERED)}
    require_fixed(tensors, fixed, source)
    told = {}
    if given["augment_dim"]:
        told["model.map_augment.weight"] = (network.embedding.layers[0].in_features, given["augment_dim"])
    require_shapes(tensors, told, source)
    entries = [entry for layer, own, other in layers for entry in _entries(layer, own, f"model.{other}", songs=songs)]
    fill(network, entries, tensors, source, idle=[*fixed, *told])
    features = network.embedding.features
    if isinstance(features, FourierEmbedding):  # 2 pi times them, not rounded before it is multiplied by the noise level
        features.frequencies = 2 * math.pi * tensors["model.map_noise.freqs"].double()
    return model.eval().requires_grad_(False)


def edm_config(settings: Mapping[str, Any]) -> tuple[dict[str, Any], DataSpec]:
    """Our config, and the description of the data, for settings of EDM.

    Raises:
        RunError: as ``from_edm`` does.
    """
    given = _given(settings)
    size = given["img_resolution"]
    sde, model = _preconditioned(given)
    name, network = _song(given) if given["model_type"] == "SongUNet" else _dhariwal(given)
    network |= {"classes": given["label_dim"], "learned_variance": given["class"] == "iDDPMPrecond"}
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {"levels": 256, "dequantize": False}},
        "sde": sde,
        "network": {"name": name, name: network},
        "model": {"labels": 1000, "scale_input": False, "sigma_data": 0.5, **model},
    }
    return config, DataSpec((given["img_channels"], size, size), levels=256, dequantize=False)


# settings


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their defaults, of the kinds that these have."""
    kind = _known(settings, "class", PRECONDITIONINGS)
    options = PRECONDITIONINGS[kind]
    network = _known({**options, **settings}, "model_type", NETWORKS)
    known = {**COMMON, **options, **NETWORKS[network]}
    given = with_defaults(settings, known, f"{kind} of a {network}")
    for key, default in known.items():
        of = {tuple: list, type(None): int}.get(type(default), type(default))
        given[key] = setting(given, key, str if key == "class" else of)
    sizes = ("img_resolution", "img_channels", "model_channels", "channel_mult_emb", *(["M"] if "M" in given else []))
    for key in sizes:
        if given[key] < 1:
            raise RunError(f"{key} must be at least 1, got {given[key]}")
    for key in ("label_dim", "augment_dim", "num_blocks"):
        if given[key] < 0:
            raise RunError(f"{key} must not be negative, got {given[key]}")
    if not given["channel_mult"] or any(type(number) is not int or number < 1 for number in given["channel_mult"]):
        raise RunError(f"channel_mult must be whole numbers above 0, got {given['channel_mult']}")
    return given


def _known(settings: Mapping[str, Any], key: str, table: Mapping[str, Any]) -> str:
    word = setting(settings, key, str)
    if word not in table:
        raise RunError(f"unknown {key} {word!r} in the settings{did_you_mean(word, table)}; choose one of {', '.join(table)}")
    return word


def _preconditioned(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section ``sde`` of our config, and what differs in ``model``."""
    if given["class"] == "EDMPrecond":
        edm = {"parameterization": "edm", "time_input": "edm", "scale_input": True, "sigma_data": given["sigma_data"]}
        return _exploding(max(0.002, given["sigma_min"]), min(80.0, given["sigma_max"])), edm
    if given["class"] == "VEPrecond":
        told = {"parameterization": "ncsn", "time_input": "log_half_sigma"}
        return _exploding(given["sigma_min"], given["sigma_max"]), told
    told = {"parameterization": "epsilon", "labels": given["M"]}
    if given["class"] == "VPPrecond":
        ends = {"beta_min": given["beta_min"], "beta_max": given["beta_min"] + given["beta_d"], "t_min": given["epsilon_t"]}
        return {"name": "vp", "vp": ends}, told | {"time_input": "label"}
    levels = _levels(given).flip(0)
    betas = (levels[1:] ** 2 - levels[:-1] ** 2) / (1 + levels[1:] ** 2)
    return {"name": "ddpm", "ddpm": {"betas": betas.tolist(), "t_min": 1 / given["M"]}}, told | {"time_input": "nearest_step"}


def _exploding(low: float, high: float) -> dict[str, Any]:
    """A VE SDE whose noise is ``low`` at t_min and ``high`` at T = 1."""
    if not 0 < low < high:
        raise RunError(f"sigma must rise from above 0, within 0.002 and 80 in EDMPrecond, got {low:g} to {high:g}")
    t_min = 1e-5
    return {"name": "ve", "ve": {"sigma_min": low * (low / high) ** (t_min / (1 - t_min)), "sigma_max": high, "t_min": t_min}}


def _levels(given: Mapping[str, Any]) -> Tensor:
    """The noise levels of iDDPM's chain, from that of the last step to 0, ``(M + 1,)`` (Karras et al. 2022, Eq. 157 to 160)."""
    steps = given["M"]
    alpha_bar = (torch.arange(steps + 1, dtype=torch.float64) / steps / (1 + given["C_2"]) * math.pi / 2).sin() ** 2
    kept = (alpha_bar[:-1] / alpha_bar[1:]).clamp_min(given["C_1"])
    return torch.cat([torch.expm1(-kept.log().flip(0).cumsum(0)).sqrt().flip(0), torch.zeros(1, dtype=torch.float64)])


def _filter(given: Mapping[str, Any]) -> Tensor:
    """The filter of every resampling, ``(1, 1, L, L)``."""
    taps = torch.tensor(given.get("resample_filter", (1, 1)), dtype=torch.float64)
    return torch.outer(taps, taps)[None, None] / taps.sum() ** 2


def _attention(given: Mapping[str, Any]) -> tuple[int, ...]:
    """The levels of these resolutions."""
    levels = range(len(given["channel_mult"]))
    return tuple(level for level in levels if given["img_resolution"] >> level in given["attn_resolutions"])


def _song(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of our network for a SongUNet."""
    taps, width = given["resample_filter"], given["model_channels"]
    if not all(type(tap) in (int, float) for tap in taps) or taps != taps[::-1] or len(taps) < 2 or len(taps) % 2:
        raise RunError(f"resample_filter must be an even number of numbers, the same backwards, got {taps}")
    if given["channel_mult_noise"] < 1:
        raise RunError(f"channel_mult_noise must be at least 1, got {given['channel_mult_noise']}")
    return "ncsnpp", {
        "width": width,
        "multipliers": tuple(given["channel_mult"]),
        "blocks": given["num_blocks"],
        "attention": _attention(given),
        "dropout": given["dropout"],
        "embedding": EMBEDDINGS[_known(given, "embedding_type", EMBEDDINGS)],
        "logarithm": False,
        "sinusoids": width * given["channel_mult_noise"],
        "embedding_width": width * given["channel_mult_emb"],
        "fir": tuple(float(tap) for tap in taps),
        "progressive_input": ENCODERS[_known(given, "encoder_type", ENCODERS)],
        "progressive": DECODERS[_known(given, "decoder_type", DECODERS)],
        "early_classes": given["label_dim"] > 0,
    }


def _dhariwal(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the options of our network for a DhariwalUNet."""
    width, multipliers = given["model_channels"], tuple(given["channel_mult"])
    return "adm", {
        "width": width,
        "multipliers": multipliers,
        "blocks": given["num_blocks"],
        "attention": _attention(given),
        "head_width": 64,
        "narrow_attention": False,
        "dropout": given["dropout"],
        "resample": "block",
        "embedding": "transformer",
        "embedding_width": width * given["channel_mult_emb"],
        "stem": multipliers[0] * width,
        "group_width": 4,
    }


# weights

FILTERED = ("_down.conv0", "_down.skip", "_up.conv0", "_up.skip", "_aux_down", "_aux_up", "_aux_residual")
"""Where the names of layers end that resample."""


def _song_layers(network: Any, size: int) -> Iterator[tuple[nn.Module | None, str, str]]:
    """The layers of a SongUNet, with their names here and there; None for one that has no weights."""
    features = network.embedding.features
    if isinstance(features, FourierEmbedding):
        yield features, "embedding.features", "map_noise"
    if network.classes:
        yield network.embedding.classes.linear, "embedding.classes.linear", "map_label"
    yield network.embedding.layers[0], "embedding.layers.0", "map_layer0"
    yield network.embedding.layers[2], "embedding.layers.2", "map_layer1"
    yield network.first, "first", f"enc.{size}x{size}_conv"
    levels = len(network.down)
    for level, part in enumerate(network.down):
        here, below = (f"enc.{size >> k}x{size >> k}" for k in (level, level + 1))
        yield from _stage(part.stage, f"down.{level}.stage", here)
        yield from _block(part.step, f"down.{level}.step", f"{below}_down") if part.step else ()
        if isinstance(part.feed, InputSkip):
            yield None, "", f"{below}_aux_down"
            yield part.feed.conv, f"down.{level}.feed.conv", f"{below}_aux_skip"
        elif isinstance(part.feed, InputResidual):
            yield part.feed.resample.conv, f"down.{level}.feed.resample.conv", f"{below}_aux_residual"
    here = f"dec.{size >> (levels - 1)}x{size >> (levels - 1)}"
    before, attention, after = network.middle
    yield from _block(before, "middle.0", f"{here}_in0")
    yield from _block(attention, "middle.1", f"{here}_in0")
    yield from _block(after, "middle.2", f"{here}_in1")
    for index, part in enumerate(network.up):
        here, above = (f"dec.{size >> k}x{size >> k}" for k in (levels - 1 - index, max(0, levels - 2 - index)))
        yield from _stage(part.stage, f"up.{index}.stage", here)
        yield from _block(part.step, f"up.{index}.step", f"{above}_up") if part.step else ()
        if isinstance(part.feed, OutputSkip):
            yield from [(None, "", f"{here}_aux_up")] if part.feed.resample else []
            yield from _head(part.feed.head, f"up.{index}.feed.head", here)
    if network.last is not None:
        yield from _head(network.last, "last", f"dec.{size}x{size}")


def _dhariwal_layers(network: Any, size: int) -> Iterator[tuple[nn.Module | None, str, str]]:
    """The layers of a DhariwalUNet, as those of a SongUNet."""
    yield network.embedding.layers[0], "embedding.layers.0", "map_layer0"
    yield network.embedding.layers[2], "embedding.layers.2", "map_layer1"
    if network.classes:
        yield network.embedding.classes, "embedding.classes", "map_label"
    yield network.first, "first", f"enc.{size}x{size}_conv"
    levels = len(network.down)
    for level, stage in enumerate(network.down):
        here = f"enc.{size >> level}x{size >> level}"
        names = [*(["down"] if level else []), *(f"block{number}" for number in range(network.blocks_per_level))]
        for position, name in enumerate(names):
            yield from _block(stage[position], f"down.{level}.{position}", f"{here}_{name}")
    here = f"dec.{size >> (levels - 1)}x{size >> (levels - 1)}"
    for position in (0, 1):
        yield from _block(network.middle[position], f"middle.{position}", f"{here}_in{position}")
    for index, stage in enumerate(network.up):
        here, above = (f"dec.{size >> k}x{size >> k}" for k in (levels - 1 - index, max(0, levels - 2 - index)))
        for position, layer in enumerate(stage):
            name = f"{here}_block{position}" if position <= network.blocks_per_level else f"{above}_up"
            yield from _block(layer, f"up.{index}.{position}", name)
    yield network.last[0], "last.0", "out_norm"
    yield network.last[2], "last.2", "out_conv"


def _stage(stage: Any, own: str, other: str) -> Iterator[tuple[nn.Module, str, str]]:
    """The blocks of a level. An attention belongs to the block before it."""
    without = len(stage.blocks) - len(stage.attention)
    for number, block in enumerate(stage.blocks):
        yield from _block(block, f"{own}.blocks.{number}", f"{other}_block{number}")
        if number >= without:
            attention = number - without
            yield from _block(stage.attention[attention], f"{own}.attention.{attention}", f"{other}_block{number}")


def _head(head: Any, own: str, other: str) -> Iterator[tuple[nn.Module, str, str]]:
    yield head[0], f"{own}.0", f"{other}_aux_norm"
    yield head[2], f"{own}.2", f"{other}_aux_conv"


SONG = {"norm_1": "norm0", "conv_1": "conv0", "modulation": "affine", "norm_2": "norm1", "conv_2": "conv1", "shortcut": "skip"}
DHARIWAL = {
    "before.0": "norm0",
    "conv": "conv0",
    "modulation": "affine",
    "norm": "norm1",
    "after.2": "conv1",
    "shortcut": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
"""The layers of the blocks and of their attention, here and there."""


def _block(block: nn.Module, own: str, other: str) -> Iterator[tuple[nn.Module, str, str]]:
    """The layers of a block, with the attention after it where it has one of its own, or of an attention."""
    names = SONG if isinstance(block, SongBlock) else DHARIWAL if isinstance(block, DhariwalBlock) else ATTENTION
    layers = dict(block.named_modules())
    for ours, theirs in names.items():
        if ours in layers:
            yield layers[ours], f"{own}.{ours}", f"{other}.{theirs}"
    if isinstance(block, DhariwalBlock) and isinstance(block.attention, SelfAttention):
        yield from _block(block.attention, f"{own}.attention", other)


def _entries(layer: nn.Module | None, own: str, other: str, *, songs: bool) -> Iterator[Entry]:
    """The tensors of a layer, of a SongUNet or not."""
    if isinstance(layer, FourierEmbedding):
        yield Entry(f"{own}.frequencies", [f"{other}.freqs"], lambda tensors: 2 * math.pi * tensors[0])
    elif other.endswith((".qkv", ".proj")):
        for name in ("weight", "bias"):
            yield _rows(f"{own}.{name}", f"{other}.{name}", shares=3 if other.endswith(".qkv") else 1)
    elif isinstance(layer, nn.Embedding):  # a linear layer without a bias there, which has nothing for no class
        yield Entry(
            f"{own}.weight",
            [f"{other}.weight"],
            lambda tensors: pad(tensors[0].T, (0, 0, 0, 1)),
            lambda rows: [rows[:-1].T],
        )
    elif other.endswith("map_layer0") and not songs:
        yield from cosines_first(own, other)
    elif isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm):
        yield from plain(own, other)


def _rows(own: str, other: str, *, shares: int) -> Entry:
    """A weight or bias of a linear layer, there a convolution of one pixel; its rows are channels x shares there."""
    sides = (1, 1) if own.endswith("weight") else ()

    def join(tensors: list[Tensor]) -> Tensor:
        return tensors[0].reshape(-1, shares, *tensors[0].shape[1 : 2 if sides else 1]).transpose(0, 1).flatten(0, 1)

    def split(rows: Tensor) -> list[Tensor]:
        rows = rows.unflatten(0, (shares, -1)).transpose(0, 1).flatten(0, 1)
        return [rows.reshape(*rows.shape, *sides)]

    return Entry(own, [other], join, split)
