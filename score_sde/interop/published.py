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
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.checkpoint import CheckpointError
from score_sde.data import DataSpec
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
    entries = list(_entries(model.network))
    needed = [name for entry in entries for name in entry.published]
    _complain(path, [n for n in needed if n not in published], "lacks {}: it is of another network than the settings describe")
    idle = isinstance(model.network, NCSNpp) and model.network.embedding is None  # it is not told the noise level
    spare = [
        name
        for name, tensor in published.items()
        if name not in set(needed) and not (idle and (".Dense_0." in name or _frozen(name, tensor)))
    ]
    _complain(path, spare, "has {}, for which the network of these settings has no place")
    own = model.network.state_dict()
    for entry in entries:
        tensors = [published[name] for name in entry.published]
        for name, tensor, expected in zip(entry.published, tensors, entry.split(own[entry.own]), strict=True):
            if tensor.shape != expected.shape:
                shapes = f"{tuple(tensor.shape)}, these settings make it {tuple(expected.shape)}"
                raise CheckpointError(f"{path}: {name} has shape {shapes}")
        own[entry.own] = entry.join(tensors)
    model.network.load_state_dict(own)
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
    flat = {**settings, **_get(settings, "training", dict, {}), **_get(settings, "data", dict, {})}
    size, channels = _get(flat, "image_size", int), _get(flat, "num_channels", int)
    centered, options = _get(flat, "centered", bool), _get(flat, "model", dict)
    scales, by_sigma = _get(options, "num_scales", int, 1000), _get(options, "scale_by_sigma", bool, False)
    kind, t_min = _get(flat, "sde", str).lower(), _get(flat, "eps", float, 1e-5)
    name, network = _network(options, size, centered)
    continuous = _get(flat, "continuous", bool, True) and name != "ncsnv2"
    model = {"labels": 1000, "scale_input": False, "sigma_data": 0.5}
    if kind in ("vpsde", "subvpsde"):
        if by_sigma or name == "ncsnv2":
            raise RunError(f"scale_by_sigma divides by the noise levels of the VE SDE; it has no meaning under {kind}")
        betas = {key: _get(options, key, float) for key in ("beta_min", "beta_max")}
        sde = {"name": kind.removesuffix("sde"), kind.removesuffix("sde"): {**betas, "t_min": t_min}}
        model |= {"parameterization": "epsilon", "time_input": "label"}
        if kind == "vpsde" and not continuous:
            table = {"steps": scales, "beta_start": betas["beta_min"] / scales, "beta_end": betas["beta_max"] / scales}
            sde = {"name": "ddpm", "ddpm": {**table, "t_min": 1 / scales}}
            model |= {"time_input": "step", "labels": scales}
    elif kind == "vesde":
        sigmas = {key: _get(options, key, float) for key in ("sigma_min", "sigma_max")}
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
    name = _get(options, "name", str)
    if name in ("ncsnv2_64", "ncsnv2_128", "ncsnv2_256"):
        norms, norm = {"InstanceNorm++": "instance++", "VarianceNorm": "variance"}, _get(options, "normalization", str)
        if norm not in norms:
            raise RunError(f"normalization {norm!r} of {name} cannot be imported; {' and '.join(norms)} can")
        return "ncsnv2", {
            "width": _get(options, "nf", int),
            "activation": _get(options, "nonlinearity", str).lower(),
            "centered": centered,
            "stages": {"64": 4, "128": 5, "256": 6}[name.removeprefix("ncsnv2_")],
            "normalization": norms[norm],
        }
    multipliers = tuple(_get(options, "ch_mult", list))
    resolutions = [size // 2**level for level in range(len(multipliers))]
    network = {
        "width": _get(options, "nf", int),
        "multipliers": multipliers,
        "blocks": _get(options, "num_res_blocks", int),
        "attention": tuple(
            i for i, resolution in enumerate(resolutions) if resolution in _get(options, "attn_resolutions", list)
        ),
        "dropout": _get(options, "dropout", float),
        "resample_with_conv": _get(options, "resamp_with_conv", bool),
        "activation": _get(options, "nonlinearity", str).lower(),
        "centered": centered,
    }
    if name == "ddpm":
        return "ddpm", network
    if name != "ncsnpp":
        raise RunError(f"model {name!r} is not known; ddpm, ncsnpp, ncsnv2_64, ncsnv2_128 and ncsnv2_256 are")
    embeddings, embedding = {"positional": "sinusoidal", "fourier": "fourier"}, _get(options, "embedding_type", str).lower()
    if embedding not in embeddings:
        raise RunError(f"unknown embedding_type {embedding!r} in the settings; choose one of {', '.join(embeddings)}")
    return "ncsnpp", {
        **network,
        "embedding": embeddings[embedding],
        "fourier_scale": _get(options, "fourier_scale", float, 16.0),
        "conditional": _get(options, "conditional", bool),
        "block": _get(options, "resblock_type", str).lower(),
        "fir": tuple(_get(options, "fir_kernel", list)) if _get(options, "fir", bool) else (),
        "skip_rescale": _get(options, "skip_rescale", bool),
        "progressive": _get(options, "progressive", str).lower(),
        "progressive_input": _get(options, "progressive_input", str).lower(),
        "combine": _get(options, "progressive_combine", str).lower(),
        "init_scale": _get(options, "init_scale", float, 0.0),
    }


def _get(settings: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of ``key``, which must be of ``kind``; a whole number may stand for a float."""
    value = settings.get(key, default)
    if value is None:
        raise RunError(f"the settings lack {key!r}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is tuple:
        value = list(value)
    if type(value) is not kind:
        raise RunError(f"{key!r} in the settings must be of type {kind.__name__}, got {value!r}")
    return value


# the file


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, plain values, and numpy's scalars, of which the optimizer's state has some."""
    if not path.is_file():
        raise CheckpointError(f"{path} not found")
    scalar = np.float64(0).__reduce__()[0]
    homes = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed = [*homes, (np.dtype, "numpy.dtype"), *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
    try:
        with torch.serialization.safe_globals(allowed):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "it is damaged, or not a checkpoint"
        )
        raise CheckpointError(f"{path} was not read, and nothing in it was run: {reason}") from error
    except Exception as error:  # whatever a file that is no checkpoint makes the reader stumble over
        raise CheckpointError(f"{path} is truncated, damaged, or not a checkpoint of PyTorch") from error
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
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: the averaged {name} holds NaN or infinite values")
    return {name: tensor.detach().float() for name, tensor in weights.items()}


def _frozen(name: str, tensor: Tensor) -> bool:
    """Whether an entry is the frequencies of a Fourier embedding, which are not trained; other ``W`` are matrices."""
    return name.endswith(".W") and tensor.ndim == 1


def _complain(path: Path, names: list[str], sentence: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{path} " + sentence.format(names[0] + more))


# names


class _Entry(NamedTuple):
    """One of our tensors, the published ones that it is made of, and the way from those to it and back."""

    own: str
    published: list[str]
    join: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    split: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]


def _entries(network: NCSNpp | NCSNv2) -> Iterator[_Entry]:
    if isinstance(network, NCSNv2):
        yield from (_Entry(name, [name]) for name in network.state_dict())
        return
    paths = {module: path for path, module in network.named_modules()}
    for number, layer in enumerate(_layers(network)):
        if layer is not None:
            for entry in _leaves(layer, network.block):
                published = [f"all_modules.{number}.{name}" for name in entry.published]
                yield entry._replace(own=f"{paths[layer]}.{entry.own}", published=published)


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


def _leaves(layer: nn.Module, block: str) -> Iterator[_Entry]:
    """The tensors of one layer."""
    if isinstance(layer, FourierEmbedding):
        yield _Entry("frequencies", ["W"], lambda tensors: 2 * math.pi * tensors[0])
    elif isinstance(layer, Block):
        yield from _plain("norm_1", "GroupNorm_0")
        yield from _plain("conv_1", "Conv_0")
        yield from _plain("modulation", "Dense_0") if layer.modulation is not None else ()
        yield from _plain("norm_2", "GroupNorm_1")
        yield from _plain("conv_2", "Conv_1")
        if layer.shortcut is not None:
            yield from _matrices("shortcut", ["NIN_0"], (1, 1)) if block == "ddpm" else _plain("shortcut", "Conv_2")
    elif isinstance(layer, SelfAttention):
        yield from _plain("norm", "GroupNorm_0")
        yield from _matrices("qkv", ["NIN_0", "NIN_1", "NIN_2"])
        yield from _matrices("out", ["NIN_3"])
    elif isinstance(layer, Resample):
        if layer.conv is not None:
            yield from _plain("conv", "Conv2d_0" if layer.filtered else "Conv_0")
    elif isinstance(layer, InputSkip):
        yield from _plain("conv", "Conv_0")
    else:
        yield from (_Entry(name, [name]) for name in ("weight", "bias"))


def _plain(own: str, published: str) -> Iterator[_Entry]:
    for name in ("weight", "bias"):
        yield _Entry(f"{own}.{name}", [f"{published}.{name}"])


def _matrices(own: str, published: list[str], sides: tuple[int, ...] = ()) -> Iterator[_Entry]:
    """A linear layer, or a 1 x 1 convolution, stored as matrices (inputs, outputs), one for each share of the outputs."""
    yield _Entry(
        f"{own}.weight",
        [f"{name}.W" for name in published],
        lambda tensors: torch.cat([tensor.T for tensor in tensors]).unflatten(1, (-1, *sides)),
        lambda weight: [share.T for share in weight.flatten(1).chunk(len(published))],
    )
    yield _Entry(f"{own}.bias", [f"{name}.b" for name in published], torch.cat, lambda bias: list(bias.chunk(len(published))))
