"""The networks of guided-diffusion and improved-diffusion, once more: functions of a state dict in the projects' own names.

Written from a description of the networks, apart from ours. ``answer`` agrees with the answers of the published code that
``tests.reference.guided_diffusion`` has. A ``StateDict`` that is empty at first draws each tensor when it is asked for, so that
the names and shapes of any settings are known after one call.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class StateDict(dict):
    """Tensors by name; one that is not there yet is drawn."""

    def __init__(self, known: dict[str, Tensor] | None = None, seed: int = 0):
        super().__init__(known or {})
        self.fixed, self.generator = bool(known), torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int, center: float = 0.0) -> Tensor:
        if name not in self:
            assert not self.fixed, f"{name} is missing"
            scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
            self[name] = center + scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        assert self[name].shape == shape, f"{name} has shape {tuple(self[name].shape)}, not {shape}"
        return self[name].double()

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        return x @ self.tensor(f"{name}.weight", out, x.shape[-1]).T + self.tensor(f"{name}.bias", out)

    def conv(self, name: str, x: Tensor, out: int, side: int = 3, stride: int = 1) -> Tensor:
        weight = self.tensor(f"{name}.weight", out, x.shape[1], *[side] * (x.ndim - 2))
        convolve = F.conv1d if x.ndim == 3 else F.conv2d
        return convolve(x, weight, self.tensor(f"{name}.bias", out), stride=stride, padding=side // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[1], center=1.0)
        return F.group_norm(x, 32, weight, self.tensor(f"{name}.bias", x.shape[1]), eps=1e-5)


def resample(x: Tensor, direction: str) -> Tensor:
    if direction == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return (F.avg_pool1d if x.ndim == 3 else F.avg_pool2d)(x, 2)


def residual(w: StateDict, name: str, x: Tensor, embedding: Tensor, out: int, a: dict, direction: str = "") -> Tensor:
    h = F.silu(w.norm(f"{name}.in_layers.0", x))
    if direction:
        h, x = resample(h, direction), resample(x, direction)
    h = w.conv(f"{name}.in_layers.2", h, out)
    told = w.linear(f"{name}.emb_layers.1", F.silu(embedding), out * (2 if a["use_scale_shift_norm"] else 1))
    told = told.reshape(*told.shape, *[1] * (x.ndim - 2))
    if a["use_scale_shift_norm"]:
        h = w.norm(f"{name}.out_layers.0", h) * (1 + told[:, :out]) + told[:, out:]
    else:
        h = w.norm(f"{name}.out_layers.0", h + told)
    h = w.conv(f"{name}.out_layers.3", F.silu(h), out)
    return h + (x if x.shape[1] == out else w.conv(f"{name}.skip_connection", x, out, side=1))


def attend(qkv: Tensor, heads: int, legacy: bool) -> Tensor:
    """``(B, 3 C, N)`` to ``(B, C, N)``, one head after the other."""
    width = qkv.shape[1] // 3
    channels = width // heads
    found = []
    for head in range(heads):
        starts = [(3 * head + i) * channels if legacy else i * width + head * channels for i in range(3)]
        q, k, v = (qkv[:, start : start + channels] for start in starts)
        weights = torch.einsum("bcs,bct->bst", q, k).div(math.sqrt(channels)).softmax(dim=2)
        found.append(torch.einsum("bst,bct->bcs", weights, v))
    return torch.cat(found, dim=1)


def attention(w: StateDict, name: str, x: Tensor, a: dict, heads: int) -> Tensor:
    width = x.shape[1]
    if a.get("num_head_channels", -1) != -1:
        heads = width // a["num_head_channels"]
    qkv = w.conv(f"{name}.qkv", w.norm(f"{name}.norm", x).flatten(2), 3 * width, side=1)
    h = attend(qkv, heads, legacy=not a.get("use_new_attention_order", False))
    return x + w.conv(f"{name}.proj_out", h, width, side=1).reshape(x.shape)


def step(w: StateDict, name: str, x: Tensor, embedding: Tensor, a: dict, direction: str) -> Tensor:
    if a.get("resblock_updown", False):
        return residual(w, name, x, embedding, x.shape[1], a, direction)
    if not a["conv_resample"]:
        return resample(x, direction)
    if direction == "up":
        return w.conv(f"{name}.conv", resample(x, "up"), x.shape[1])
    return w.conv(f"{name}.op", x, x.shape[1], stride=2)


def encode(w: StateDict, a: dict, x: Tensor, t: Tensor, y: Tensor | None, *, improved: bool) -> tuple[Tensor, Sequence, Tensor]:
    """The middle's answer, all before it, and the embedding."""
    base, levels = a["model_channels"], a["channel_mult"]
    half = base // 2
    angles = t.double()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
    embedding = w.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1), 4 * base)
    embedding = w.linear("time_embed.2", F.silu(embedding), 4 * base)
    if a.get("num_classes"):
        embedding = embedding + w.tensor("label_emb.weight", a["num_classes"], 4 * base)[y]
    results = [w.conv("input_blocks.0.0", x.double(), base if improved else int(levels[0] * base))]
    for level, multiplier in enumerate(levels):
        if level:
            results.append(step(w, f"input_blocks.{len(results)}.0", results[-1], embedding, a, "down"))
        for _ in range(a["num_res_blocks"]):
            name = f"input_blocks.{len(results)}"
            h = residual(w, f"{name}.0", results[-1], embedding, int(multiplier * base), a)
            if 2**level in a["attention_resolutions"]:
                h = attention(w, f"{name}.1", h, a, a["num_heads"])
            results.append(h)
    width = results[-1].shape[1]
    h = residual(w, "middle_block.0", results[-1], embedding, width, a)
    h = attention(w, "middle_block.1", h, a, a["num_heads"])
    return residual(w, "middle_block.2", h, embedding, width, a), results, embedding


def answer(w: StateDict, a: dict, x: Tensor, t: Tensor, y: Tensor | None = None, *, improved: bool = False) -> Tensor:
    """What the U-Net of the constructor's arguments ``a`` gives at ``x`` ``(B, C, ...)``, ``t`` ``(B,)`` and classes ``y``."""
    h, results, embedding = encode(w, a, x, t, y, improved=improved)
    heads = a["num_heads"] if a["num_heads_upsample"] == -1 else a["num_heads_upsample"]
    number, results = 0, list(results)
    for level, multiplier in reversed(list(enumerate(a["channel_mult"]))):
        for block in range(a["num_res_blocks"] + 1):
            name, place = f"output_blocks.{number}", 1
            h = torch.cat([h, results.pop()], dim=1)
            h = residual(w, f"{name}.0", h, embedding, int(multiplier * a["model_channels"]), a)
            if 2**level in a["attention_resolutions"]:
                h, place = attention(w, f"{name}.1", h, a, heads), 2
            if level and block == a["num_res_blocks"]:
                h = step(w, f"{name}.{place}", h, embedding, a, "up")
            number += 1
    return w.conv("out.2", F.silu(w.norm("out.0", h)), a["out_channels"])


def logits(w: StateDict, a: dict, x: Tensor, t: Tensor) -> Tensor:
    """What the classifier of the constructor's arguments ``a`` gives at ``x`` ``(B, C, ...)`` and ``t`` ``(B,)``."""
    h, _, _ = encode(w, a, x, t, None, improved=False)
    width, h = h.shape[1], F.silu(w.norm("out.0", h))
    if a["pool"] == "adaptive":
        pooled = h.flatten(2).mean(dim=2).reshape(*h.shape[:2], *[1] * (x.ndim - 2))
        return w.conv("out.3", pooled, a["out_channels"], side=1).flatten(1)
    tokens = h.flatten(2)
    tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2)
    tokens = tokens + w.tensor("out.2.positional_embedding", width, tokens.shape[2])
    attended = attend(w.conv("out.2.qkv_proj", tokens, 3 * width, side=1), width // a["num_head_channels"], legacy=False)
    return w.conv("out.2.c_proj", attended, a["out_channels"], side=1)[:, :, 0]
