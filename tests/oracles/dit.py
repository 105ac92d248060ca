"""DiT once more: a function of a state dict in the project's own names, written from a description of the network.

``answer`` agrees with the answers of the published code that ``tests.reference.dit`` has.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.guided_diffusion import StateDict


def normalize(x: Tensor) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + 1e-6).sqrt()


def waves(values: Tensor, half: int) -> tuple[Tensor, Tensor]:
    angles = values.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    return angles.sin(), angles.cos()


def positions(side: int, width: int) -> Tensor:
    """``(side^2, width)``: of the column, then of the row."""
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return torch.cat([*waves(column, width // 4), *waves(row, width // 4)], dim=1)


def attend(w: StateDict, name: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[-1]
    q, k, v = w.linear(f"{name}.qkv", x, 3 * width).chunk(3, dim=-1)
    found = []
    for part in torch.arange(width).chunk(heads):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(len(part))).softmax(-1)
        found.append(weights @ v[..., part])
    return w.linear(f"{name}.proj", torch.cat(found, dim=-1), width)


def answer(w: StateDict, a: dict, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What the network of the constructor's arguments ``a`` gives at ``x`` ``(B, C, H, H)``, ``t`` and classes ``y``."""
    width, patch, side = a["hidden_size"], a["patch_size"], a["input_size"] // a["patch_size"]
    channels = a["in_channels"] * (2 if a["learn_sigma"] else 1)
    fixed = positions(side, width)
    if "pos_embed" not in w:
        w["pos_embed"] = fixed[None]
    torch.testing.assert_close(w["pos_embed"][0].double(), fixed, rtol=0, atol=1e-6)
    weight = w.tensor("x_embedder.proj.weight", width, a["in_channels"], patch, patch)
    tokens = F.conv2d(x.double(), weight, w.tensor("x_embedder.proj.bias", width), stride=patch).flatten(2).transpose(1, 2)
    tokens = tokens + w["pos_embed"].double()
    sine, cosine = waves(t, 128)
    embedding = w.linear("t_embedder.mlp.0", torch.cat([cosine, sine], dim=1), width)
    embedding = w.linear("t_embedder.mlp.2", F.silu(embedding), width)
    rows = a["num_classes"] + (a["class_dropout_prob"] > 0)
    embedding = F.silu(embedding + w.tensor("y_embedder.embedding_table.weight", rows, width)[y])
    for number in range(a["depth"]):
        name = f"blocks.{number}"
        parts = w.linear(f"{name}.adaLN_modulation.1", embedding, 6 * width)[:, None].split(width, dim=-1)
        tokens = tokens + parts[2] * attend(w, f"{name}.attn", normalize(tokens) * (1 + parts[1]) + parts[0], a["num_heads"])
        hidden = w.linear(f"{name}.mlp.fc1", normalize(tokens) * (1 + parts[4]) + parts[3], int(a["mlp_ratio"] * width))
        tokens = tokens + parts[5] * w.linear(f"{name}.mlp.fc2", F.gelu(hidden, approximate="tanh"), width)
    shift, scale = w.linear("final_layer.adaLN_modulation.1", embedding, 2 * width)[:, None].split(width, dim=-1)
    tokens = w.linear("final_layer.linear", normalize(tokens) * (1 + scale) + shift, patch**2 * channels)
    out = tokens.new_zeros(len(x), channels, a["input_size"], a["input_size"])
    for index, features in enumerate(tokens.unbind(1)):
        row, column = index // side * patch, index % side * patch
        out[:, :, row : row + patch, column : column + patch] = features.reshape(-1, patch, patch, channels).permute(0, 3, 1, 2)
    return out
