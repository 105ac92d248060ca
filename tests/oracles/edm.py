"""The networks and the denoisers of EDM once more: functions of a state dict in the project's own names.

Written from a description of the networks, apart from ours. ``denoiser`` agrees with the answers of the published code that
``tests.reference.edm`` has.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.guided_diffusion import StateDict


class EDMStateDict(StateDict):
    """With the normalization and the filters of these networks."""

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        channels = x.shape[1]
        weight, bias = self.tensor(f"{name}.weight", channels, center=1.0), self.tensor(f"{name}.bias", channels)
        return F.group_norm(x, min(32, channels // 4), weight, bias, eps=eps)

    def plain(self, name: str, x: Tensor, out: int) -> Tensor:
        """A linear layer without a bias."""
        return x @ self.tensor(f"{name}.weight", out, x.shape[-1]).T

    def resample(self, name: str, x: Tensor, direction: str, taps: list[float]) -> Tensor:
        """Each output pixel is a sum over the filter, written out in one dimension after the other."""
        taps_1d = torch.tensor(taps, dtype=torch.float64)
        square = torch.outer(taps_1d, taps_1d)[None, None] / taps_1d.sum() ** 2
        fixed = self.setdefault(f"{name}.resample_filter", square)
        assert fixed.shape == square.shape
        torch.testing.assert_close(fixed.double(), square)
        for axis in (2, 3):
            x = torch.movedim(torch.movedim(x, axis, -1) @ matrix(x.shape[axis], direction, tuple(taps)).T, -1, axis)
        return x


@cache
def matrix(size: int, direction: str, taps: tuple[float, ...]) -> Tensor:
    """What the filter makes of a row of ``size`` pixels: a matrix, whose transpose, times 2, goes up."""
    rows, columns = (size // 2, size) if direction == "down" else (size, 2 * size)
    found = [[0.0] * columns for _ in range(rows)]
    for row in range(rows):
        for tap, value in enumerate(taps):
            if 0 <= (column := 2 * row + tap - len(taps) // 2 + 1) < columns:
                found[row][column] += value / sum(taps)
    down = torch.tensor(found, dtype=torch.float64)
    return down if direction == "down" else 2 * down.T


def shrunk(w: EDMStateDict, name: str, x: Tensor, out: int, taps: list[float]) -> Tensor:
    """Convolved, then filtered. There are zeros around the image, which the filter meets convolved."""
    zeros, weight = len(taps), w.tensor(f"{name}.weight", out, x.shape[1], 3, 3)
    wide = w.resample(name, F.conv2d(F.pad(x, [2 * zeros] * 4), weight, padding=1), "down", taps)
    return wide[:, :, zeros:-zeros, zeros:-zeros] + w.tensor(f"{name}.bias", out)[:, None, None]


def waves(values: Tensor, count: int, intervals: int) -> tuple[Tensor, Tensor]:
    angles = values.double()[:, None] * 10000.0 ** (-torch.arange(count, dtype=torch.float64) / intervals)
    return angles.cos(), angles.sin()


def block(
    w: EDMStateDict, name: str, x: Tensor, embedding: Tensor, out: int, a: dict, *, heads: int = 0, to: str = ""
) -> Tensor:
    song = a["model_type"] == "SongUNet"
    eps, scale, taps = (1e-6, math.sqrt(0.5), a["resample_filter"]) if song else (1e-5, 1.0, [1, 1])
    h = F.silu(w.norm(f"{name}.norm0", x, eps))
    h = w.conv(f"{name}.conv0", w.resample(f"{name}.conv0", h, to, taps) if to else h, out)
    told = w.linear(f"{name}.affine", embedding, out if song else 2 * out)[:, :, None, None]
    if song:
        h = w.norm(f"{name}.norm1", h + told, eps)
    else:
        h = w.norm(f"{name}.norm1", h, eps) * (told[:, :out] + 1) + told[:, out:]
    h = w.conv(f"{name}.conv1", F.silu(h), out)
    skip = w.resample(f"{name}.skip", x, to, taps) if to else x
    if x.shape[1] != out or (to and song):
        skip = w.conv(f"{name}.skip", skip, out, side=1)
    x = (h + skip) * scale
    if heads:
        qkv = w.conv(f"{name}.qkv", w.norm(f"{name}.norm2", x, eps), 3 * out, side=1).flatten(2)
        found = []
        for part in qkv.chunk(heads, dim=1):
            q, k, v = part[:, 0::3], part[:, 1::3], part[:, 2::3]
            weights = torch.einsum("bcs,bct->bst", q, k).div(math.sqrt(out // heads)).softmax(dim=2)
            found.append(torch.einsum("bst,bct->bcs", weights, v))
        x = (x + w.conv(f"{name}.proj", torch.cat(found, dim=1).reshape(x.shape), out, side=1)) * scale
    return x


def embed(w: EDMStateDict, a: dict, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
    song, base, classes = a["model_type"] == "SongUNet", a["model_channels"], a["label_dim"]
    count, out = base * (a["channel_mult_noise"] if song else 1), base * a["channel_mult_emb"]
    half = count // 2
    if song and a["embedding_type"] == "fourier":
        angles = noise.double()[:, None] * 2 * math.pi * w.tensor("model.map_noise.freqs", half)
        told = torch.cat([angles.sin(), angles.cos()], dim=1)
    elif song:
        told = torch.cat(waves(noise, half, half - 1)[::-1], dim=1)
    else:
        told = torch.cat(waves(noise, half, half), dim=1)
    if classes and labels is None:
        labels = torch.zeros(len(noise), classes, dtype=torch.float64)
    if classes and song:
        told = told + w.linear("model.map_label", labels.double() * math.sqrt(classes), count)
    if a["augment_dim"]:
        augment = torch.zeros(len(noise), a["augment_dim"], dtype=torch.float64) if augment is None else augment
        told = told + w.plain("model.map_augment", augment.double(), count)
    told = w.linear("model.map_layer1", F.silu(w.linear("model.map_layer0", told, out)), out)
    if classes and not song:
        told = told + w.plain("model.map_label", labels.double(), out)
    return F.silu(told)


def heads_of(a: dict, channels: int, attends: bool) -> int:
    return int(attends) if a["model_type"] == "SongUNet" else attends * (channels // 64)


def network(
    w: EDMStateDict, a: dict, out: int, x: Tensor, noise: Tensor, labels: Tensor | None, augment: Tensor | None
) -> Tensor:
    song, base, size, levels = a["model_type"] == "SongUNet", a["model_channels"], a["img_resolution"], len(a["channel_mult"])
    encoder, decoder = (a["encoder_type"], a["decoder_type"]) if song else ("standard", "standard")
    embedding, x = embed(w, a, noise, labels, augment), x.double()
    aux, results = x, []
    for level, multiplier in enumerate(a["channel_mult"]):
        side = size >> level
        name = f"model.enc.{side}x{side}"
        if level == 0:
            x = w.conv(f"{name}_conv", x, base if song else base * multiplier)
        else:
            x = block(w, f"{name}_down", x, embedding, x.shape[1], a, to="down")
            if encoder == "skip":
                aux = w.resample(f"{name}_aux_down", aux, "down", a["resample_filter"])
                x = x + w.conv(f"{name}_aux_skip", aux, x.shape[1], side=1)
            elif encoder == "residual":
                x = aux = (x + shrunk(w, f"{name}_aux_residual", aux, x.shape[1], a["resample_filter"])) / 2**0.5
        results.append(x)
        for number in range(a["num_blocks"]):
            heads = heads_of(a, base * multiplier, side in a["attn_resolutions"])
            x = block(w, f"{name}_block{number}", x, embedding, base * multiplier, a, heads=heads)
            results.append(x)
    image = None
    for level, multiplier in reversed(list(enumerate(a["channel_mult"]))):
        side = size >> level
        name = f"model.dec.{side}x{side}"
        if level == levels - 1:
            x = block(w, f"{name}_in0", x, embedding, x.shape[1], a, heads=heads_of(a, x.shape[1], True))
            x = block(w, f"{name}_in1", x, embedding, x.shape[1], a)
        else:
            x = block(w, f"{name}_up", x, embedding, x.shape[1], a, to="up")
        for number in range(a["num_blocks"] + 1):
            attends = side in a["attn_resolutions"] and (number == a["num_blocks"] or not song)
            joined = torch.cat([x, results.pop()], dim=1)
            heads = heads_of(a, base * multiplier, attends)
            x = block(w, f"{name}_block{number}", joined, embedding, base * multiplier, a, heads=heads)
        if song and (decoder == "skip" or level == 0):
            if image is not None:
                image = w.resample(f"{name}_aux_up", image, "up", a["resample_filter"])
            told = w.conv(f"{name}_aux_conv", F.silu(w.norm(f"{name}_aux_norm", x, 1e-6)), out)
            image = told if image is None else image + told
    return image if song else w.conv("model.out_conv", F.silu(w.norm("model.out_norm", x)), out)


def levels_of(a: dict) -> Tensor:
    """iDDPM's noise levels, from the largest to 0."""
    u, steps = [0.0], a["M"]
    for j in range(steps, 0, -1):
        now, before = (math.sin(math.pi / 2 * k / (steps * (a["C_2"] + 1))) ** 2 for k in (j, j - 1))
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(before / now, a["C_1"]) - 1))
    return torch.tensor(u, dtype=torch.float64)


def denoiser(
    w: EDMStateDict, a: dict, x: Tensor, sigma: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
) -> Tensor:
    """D(x, sigma) of the settings ``a``, all given, at ``x`` ``(B, C, H, H)`` and noise levels ``(B,)``."""
    kind, x, sigma, outputs = a["class"], x.double(), sigma.double(), a["img_channels"]
    skip, scale, c_out = torch.ones_like(sigma), torch.ones_like(sigma), -sigma
    if kind == "EDMPrecond":
        total = sigma**2 + a["sigma_data"] ** 2
        skip, scale, c_out = a["sigma_data"] ** 2 / total, total**-0.5, sigma * a["sigma_data"] / total.sqrt()
        noise = sigma.log() / 4
    elif kind == "VEPrecond":
        noise, c_out = (sigma / 2).log(), sigma
    elif kind == "VPPrecond":
        scale = (1 + sigma**2) ** -0.5
        t = ((a["beta_min"] ** 2 + 2 * a["beta_d"] * torch.log1p(sigma**2)).sqrt() - a["beta_min"]) / a["beta_d"]
        noise = (a["M"] - 1) * t
    else:
        scale, outputs = (1 + sigma**2) ** -0.5, 2 * a["img_channels"]
        u = w.setdefault("u", levels_of(a))
        noise = a["M"] - 1 - (sigma[:, None] - u).abs().argmin(dim=1).double()
    skip, scale, c_out = (value[:, None, None, None] for value in (skip, scale, c_out))
    return skip * x + c_out * network(w, a, outputs, scale * x, noise, labels, augment)[:, : a["img_channels"]]
