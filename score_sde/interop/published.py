r"""Checkpoints of score_sde_pytorch (Song et al. 2021): their settings, their names, and their conventions.

Such a file holds ``model``, ``ema``, ``optimizer`` and ``step``. The layers of a network are numbered in the order in which
they run, ``module.all_modules.<i>``; the averaged weights are a list without names, in the order of the trainable entries of
``model``. What the network's output F means depends on the SDE (Song et al. 2021, Appendix C):

    VP, sub-VP   score = -F(x, 999 t) / sigma(t), data in [-1, 1]
    VE           score = F(x, sigma(t)), which the network divides by sigma where it scales by sigma; data in [0, 1]

Networks of the discrete chains of N steps are given the number of the step: under VP the row of the table of betas, under VE
the noise level, counted from the largest. At the times in between that number is a fraction. The likelihoods of all these
models are computed on (k + u) / 256, so that is how their data is scaled.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.checkpoint import CheckpointError
from score_sde.data import DataSpec
from score_sde.interop.reading import Entry, fill, load_file, plain, setting
from score_sde.model import ScoreModel
from score_sde.networks.attention import SelfAttention
from score_sde.networks.embedding import FourierEmbedding
from score_sde.networks.ncsnpp import Block, InputResidual, InputSkip, NCSNpp, OutputResidual, OutputSkip, Step
from score_sde.networks.refinenet import NCSNv2
from score_sde.networks.resample import Resample
from score_sde.run import Config, RunError, build_model


def import_published(path: Path | str, config: Config, spec: DataSpec) -> tuple[ScoreModel, int]:
    """The model in a checkpoint of score_sde_pytorch, with its averaged weights, and the step it was saved at.

    Args:
        path: the ``.pth`` file. Nothing in it is executed.
        config: what the model is: ``published_config`` makes it from that project's settings, or it is one of our configs.
        spec: what its data is.

    Raises:
        CheckpointError: the file is missing, damaged, not such a checkpoint, or does not fit the config.
        RunError: the config's network is not one of that project's.
    """
    path = Path(path)
    file = _read(path)
    published = _averaged(file, path)
    model = build_model(config, spec)
    if not isinstance(model.network, NCSNpp | NCSNv2):
        raise RunError(f"network {config['network']['name']!r} is not one of score_sde_pytorch's: ddpm, ncsnpp or ncsnv2")
    idle: list[str] = []
    if isinstance(model.network, NCSNpp) and model.network.embedding is None:  # it is not told the noise level
        idle = [name for name, tensor in published.items() if ".Dense_0." in name or _frozen(name, tensor)]
    fill(model.network, _entries(model.network), published, str(path), idle=idle)
    return model.eval().requires_grad_(False), file["step"]


def published_config(settings: Mapping[str, Any]) -> tuple[dict[str, Any], DataSpec]:
    """Our config, and the description of the data, for a model's settings in that project's own keys.

    Args:
        settings: ``sde``, ``continuous`` (by default true), ``centered``, ``image_size``, ``num_channels`` and ``model``, at
            the top or, as that project's configs have them, under ``training`` and ``data``; ``eps`` is the smallest time, by
            default 1e-5.

    Raises:
        RunError: a key is missing, or the settings are of a kind that cannot be imported; the message says which.
    """
    flat = {**settings, **setting(settings, "training", dict, {}), **setting(settings, "data", dict, {})}
    size, channels = setting(flat, "image_size", int), setting(flat, "num_channels", int)
    centered, options = setting(flat, "centered", bool), setting(flat, "model", dict)
    scales, by_sigma = setting(options, "num_scales", int, 1000), setting(options, "scale_by_sigma", bool, False)
    kind, t_min = setting(flat, "sde", str).lower(), setting(flat, "eps", float, 1e-5)
    name, network = _network(options, size, centered)
    continuous = setting(flat, "continuous", bool, True) and name != "ncsnv2"
    model = {"labels": 1000, "scale_input": False, "sigma_data": 0.5}
    if kind in ("vpsde", "subvpsde"):
        if by_sigma or name == "ncsnv2":
            raise RunError(f"scale_by_sigma divides by the noise levels of the VE SDE; it has no meaning under {kind}")
        betas = {key: setting(options, key, float) for key in ("beta_min", "beta_max")}
        sde = {"name": kind.removesuffix("sde"), kind.removesuffix("sde"): {**betas, "t_min": t_min}}
        model |= {"parameterization": "epsilon", "time_input": "label"}
        if kind == "vpsde" and not continuous:
            table = {"steps": scales, "beta_start": betas["beta_min"] / scales, "beta_end": betas["beta_max"] / scales}
            sde = {"name": "ddpm", "ddpm": {**table, "t_min": 1 / scales}}
            model |= {"time_input": "step", "labels": scales}
    elif kind == "vesde":
        sigmas = {key: setting(options, key, float) for key in ("sigma_min", "sigma_max")}
        sde = {"name": "ve", "ve": {**sigmas, "t_min": t_min}}
        model |= {"parameterization": "ncsn" if by_sigma or name == "ncsnv2" else "score", "time_input": "sigma"}
        if not continuous:
            model |= {"time_input": "reversed", "labels": scales}
        elif by_sigma and network.get("embedding") != "fourier":
            raise RunError("scale_by_sigma with a positional embedding is of discrete noise levels: set continuous to false")
    else:
        raise RunError(f"unknown sde {kind!r} in the settings; choose one of vpsde, subvpsde, vesde")
    model_range = (-1.0, 1.0) if centered else (0.0, 1.0)
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {"levels": 256, "model_range": model_range}},
        "sde": sde,
        "network": {"name": name, name: network},
        "model": model,
    }
    return config, DataSpec((channels, size, size), levels=256, model_range=model_range)


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        RunError: there is no such file, or it does not hold a JSON object.
    """
    try:
        settings = json.loads(Path(path).read_text())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(settings, dict):
        raise RunError(f"{path} must hold an object of settings, it holds a {type(settings).__name__}")
    return settings


def _network(options: Mapping[str, Any], size: int, centered: bool) -> tuple[str, dict[str, Any]]:
    """Our name and options for that project's ``model`` section."""
    name = setting(options, "name", str)
    if name in ("ncsnv2_64", "ncsnv2_128", "ncsnv2_256"):
        norms, norm = {"InstanceNorm++": "instance++", "VarianceNorm": "variance"}, setting(options, "normalization", str)
        if norm not in norms:
            raise RunError(f"normalization {norm!r} of {name} cannot be imported; {' and '.join(norms)} can")
        return "ncsnv2", {
            "width": setting(options, "nf", int),
            "activation": setting(options, "nonlinearity", str).lower(),
            "centered": centered,
            "stages": {"64": 4, "128": 5, "256": 6}[name.removeprefix("ncsnv2_")],
            "normalization": norms[norm],
        }
    multipliers = tuple(setting(options, "ch_mult", list))
    resolutions = [size // 2**level for level in range(len(multipliers))]
    network = {
        "width": setting(options, "nf", int),
        "multipliers": multipliers,
        "blocks": setting(options, "num_res_blocks", int),
        "attention": tuple(
            i for i, resolution in enumerate(resolutions) if resolution in setting(options, "attn_resolutions", list)
        ),
        "dropout": setting(options, "dropout", float),
        "resample_with_conv": setting(options, "resamp_with_conv", bool),
        "activation": setting(options, "nonlinearity", str).lower(),
        "centered": centered,
    }
    if name == "ddpm":
        return "ddpm", network
    if name != "ncsnpp":
        raise RunError(f"model {name!r} is not known; ddpm, ncsnpp, ncsnv2_64, ncsnv2_128 and ncsnv2_256 are")
    embeddings, embedding = {"positional": "sinusoidal", "fourier": "fourier"}, setting(options, "embedding_type", str).lower()
    if embedding not in embeddings:
        raise RunError(f"unknown embedding_type {embedding!r} in the settings; choose one of {', '.join(embeddings)}")
    return "ncsnpp", {
        **network,
        "embedding": embeddings[embedding],
        "fourier_scale": setting(options, "fourier_scale", float, 16.0),
        "conditional": setting(options, "conditional", bool),
        "block": setting(options, "resblock_type", str).lower(),
        "fir": tuple(setting(options, "fir_kernel", list)) if setting(options, "fir", bool) else (),
        "skip_rescale": setting(options, "skip_rescale", bool),
        "progressive": setting(options, "progressive", str).lower(),
        "progressive_input": setting(options, "progressive_input", str).lower(),
        "combine": setting(options, "progressive_combine", str).lower(),
        "init_scale": setting(options, "init_scale", float, 0.0),
    }


# the file


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, plain values, and numpy's scalars, of which the optimizer's state has some."""
    scalar = np.float64(0).__reduce__()[0]
    homes = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    file = load_file(path, [*homes, (np.dtype, "numpy.dtype"), *kinds])
    if not isinstance(file, dict):
        raise CheckpointError(f"{path} holds a {type(file).__name__}, not a checkpoint of score_sde_pytorch")
    missing = [key for key in ("model", "ema", "step") if key not in file]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it is not a checkpoint of score_sde_pytorch")
    try:
        file["step"] = int(file["step"])
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(f"{path}: its step is not a number but {file['step']!r}") from None
    return file


def _averaged(file: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The averaged weights by name: the frozen ones from ``model``, the others from the list in ``ema``."""
    weights, ema = file["model"], file["ema"]
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise CheckpointError(f"{path}: its model is not a dict of tensors")
    if not isinstance(shadow, list | tuple) or not all(isinstance(t, Tensor) for t in shadow):
        raise CheckpointError(f"{path}: its ema has no list shadow_params of tensors")
    # the layer that joins the image to the features has had two names
    weights = {name.removeprefix("module.").replace(".Conv.", ".Conv_0."): tensor for name, tensor in weights.items()}
    weights.pop("sigmas", None)
    trained = [name for name, tensor in weights.items() if not _frozen(name, tensor)]
    if len(shadow) != len(trained):
        raise CheckpointError(
            f"{path}: ema.shadow_params has {len(shadow)} tensors, but the model has {len(trained)} trainable parameters"
        )
    for name, tensor in zip(trained, shadow, strict=True):
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{path}: ema.shadow_params has shape {tuple(tensor.shape)} where {name} has {tuple(weights[name].shape)}"
            )
        weights[name] = tensor
    return {name: tensor.detach().float() for name, tensor in weights.items()}


def _frozen(name: str, tensor: Tensor) -> bool:
    """Whether an entry is the frequencies of a Fourier embedding, which are not trained; other ``W`` are matrices."""
    return name.endswith(".W") and tensor.ndim == 1


# names


def _entries(network: NCSNpp | NCSNv2) -> Iterator[Entry]:
    if isinstance(network, NCSNv2):
        yield from (Entry(name, [name]) for name in network.state_dict())
        return
    paths = {module: path for path, module in network.named_modules()}
    for number, layer in enumerate(_layers(network)):
        if layer is not None:
            for entry in _leaves(layer, network.block):
                published = [f"all_modules.{number}.{name}" for name in entry.others]
                yield entry._replace(own=f"{paths[layer]}.{entry.own}", others=published)


def _layers(network: Any) -> Iterator[nn.Module | None]:
    """The layers as they are numbered; None for one that we do not have."""
    embedding = network.embedding
    if network.takes_logarithm:
        yield embedding.features if embedding is not None else None
    if embedding is not None:
        yield from embedding.layers[::2]
    yield network.first
    for level in network.down:
        for block, attention in level.stage.pairs():
            yield block
            yield from [attention] if isinstance(attention, SelfAttention) else []
        yield from _parts(level.step)
        yield from _parts(level.feed)
    yield from network.middle
    for level in network.up:
        yield from level.stage.blocks
        yield from level.stage.attention
        yield from _parts(level.feed)
        yield from _parts(level.step)
    yield from _parts(network.last)


def _parts(part: nn.Module | None) -> Iterator[nn.Module]:
    """The numbered layers of a part: a head has two, its normalization and its convolution."""
    if isinstance(part, nn.Sequential):
        yield from (part[0], part[2])
    elif isinstance(part, Step | InputResidual):
        yield part.resample
    elif isinstance(part, OutputSkip):
        yield from _parts(part.head)
    elif isinstance(part, OutputResidual):
        yield from _parts(part.layer)
    elif part is not None:
        yield part


def _leaves(layer: nn.Module, block: str) -> Iterator[Entry]:
    """The tensors of one layer."""
    if isinstance(layer, FourierEmbedding):
        yield Entry("frequencies", ["W"], lambda tensors: 2 * math.pi * tensors[0])
    elif isinstance(layer, Block):
        yield from plain("norm_1", "GroupNorm_0")
        yield from plain("conv_1", "Conv_0")
        yield from plain("modulation", "Dense_0") if layer.modulation is not None else ()
        yield from plain("norm_2", "GroupNorm_1")
        yield from plain("conv_2", "Conv_1")
        if layer.shortcut is not None:
            yield from _matrices("shortcut", ["NIN_0"], (1, 1)) if block == "ddpm" else plain("shortcut", "Conv_2")
    elif isinstance(layer, SelfAttention):
        yield from plain("norm", "GroupNorm_0")
        yield from _matrices("qkv", ["NIN_0", "NIN_1", "NIN_2"])
        yield from _matrices("out", ["NIN_3"])
    elif isinstance(layer, Resample):
        if layer.conv is not None:
            yield from plain("conv", "Conv2d_0" if layer.filtered else "Conv_0")
    elif isinstance(layer, InputSkip):
        yield from plain("conv", "Conv_0")
    else:
        yield from (Entry(name, [name]) for name in ("weight", "bias"))


def _matrices(own: str, published: list[str], sides: tuple[int, ...] = ()) -> Iterator[Entry]:
    """A linear layer, or a 1 x 1 convolution, stored as matrices (inputs, outputs), one for each share of the outputs."""
    yield Entry(
        f"{own}.weight",
        [f"{name}.W" for name in published],
        lambda tensors: torch.cat([tensor.T for tensor in tensors]).unflatten(1, (-1, *sides)),
        lambda weight: [share.T for share in weight.flatten(1).chunk(len(published))],
    )
    yield Entry(f"{own}.bias", [f"{name}.b" for name in published], torch.cat, lambda bias: list(bias.chunk(len(published))))
