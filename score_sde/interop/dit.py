r"""State dicts of DiT (Peebles and Xie 2023).

Settings are the arguments of the network, with the defaults of DiT-XL/2. Those models work on latents of Stable Diffusion's
autoencoder, of 4 channels, which were multiplied by 0.18215: continuous data. They were trained on the chain of DDPM's 1000
betas to predict the noise, and with ``learn_sigma`` also the variance as a number between log beta_tilde and log beta. The
network is told the step. ``timestep_respacing``, beside the arguments, keeps some of the steps for sampling.
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from score_sde.data import DataSpec
from score_sde.interop.reading import (
    Entry,
    Weights,
    cosines_first,
    fill,
    plain,
    require_fixed,
    setting,
    state_dict,
    with_defaults,
)
from score_sde.model import ScoreModel
from score_sde.networks.dit import DiT
from score_sde.run import RunError, build_model

SETTINGS = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "num_classes": 1000,
    "learn_sigma": True,
    "timestep_respacing": "",
}
"""The settings with their defaults."""


def from_dit(weights: Weights, settings: Mapping[str, Any]) -> ScoreModel:
    """A diffusion transformer as a model for every solver and the likelihood, in evaluation mode.

    >>> model = from_dit("DiT-XL-2-256x256.pt", {"input_size": 32})

    Args:
        weights: a state dict of DiT, a checkpoint of its training, whose averaged weights are taken, or the file of either.
            Nothing in a file is executed.
        settings: what differs from DiT-XL/2, in the keys of ``SETTINGS``.

    Raises:
        RunError: a setting is unknown, or of a kind that cannot be read.
        CheckpointError: the weights are damaged, or do not fit the settings.
    """
    # a checkpoint of training has its flags beside the weights
    tensors, source = state_dict(weights, [argparse.Namespace], within="ema")
    model = build_model(*dit_config(settings))
    network: Any = model.network
    fixed = {"pos_embed": network.position[None]}
    require_fixed(tensors, fixed, source)
    fill(network, _entries(network), tensors, source, idle=fixed)
    return model.eval().requires_grad_(False)


def dit_config(settings: Mapping[str, Any]) -> tuple[dict[str, Any], DataSpec]:
    """Our config, and the description of the data, for settings of DiT.

    Raises:
        RunError: as ``from_dit`` does.
    """
    given = with_defaults(settings, SETTINGS, "DiT")
    size, channels, classes = (setting(given, key, int) for key in ("input_size", "in_channels", "num_classes"))
    if min(size, channels, classes) < 1:
        given_sizes = f"{size}, {channels} and {classes}"
        raise RunError(f"input_size, in_channels and num_classes must be at least 1, got {given_sizes}")
    network = {
        "width": setting(given, "hidden_size", int),
        "depth": setting(given, "depth", int),
        "heads": setting(given, "num_heads", int),
        "patch": setting(given, "patch_size", int),
        "mlp_ratio": setting(given, "mlp_ratio", float),
        "embedding": "transformer",
        "columns_first": True,
        "classes": classes,
        "no_class": setting(given, "class_dropout_prob", float) > 0,
        "learned_variance": setting(given, "learn_sigma", bool),
    }
    config = {
        "seed": 0,
        "data": {"name": "file", "file": {}},
        "sde": {"name": "ddpm", "ddpm": {"respacing": setting(given, "timestep_respacing", str), "t_min": 1e-3}},
        "network": {"name": "dit", "dit": network},
        "model": {
            "parameterization": "epsilon",
            "time_input": "step",
            "labels": 1000,
            "scale_input": False,
            "sigma_data": 0.5,
        },
    }
    return config, DataSpec((channels, size, size))


def _entries(network: DiT) -> Iterator[Entry]:
    yield from plain("first", "x_embedder.proj")
    yield from cosines_first("embedding.layers.0", "t_embedder.mlp.0")
    yield from plain("embedding.layers.2", "t_embedder.mlp.2")
    yield Entry("embedding.classes.weight", ["y_embedder.embedding_table.weight"])
    names = {
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "out.0": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    for number in range(len(network.blocks)):
        for own, other in names.items():
            yield from plain(f"blocks.{number}.{own}", f"blocks.{number}.{other}")
    yield from plain("modulation", "final_layer.adaLN_modulation.1")
    yield from plain("last", "final_layer.linear")
