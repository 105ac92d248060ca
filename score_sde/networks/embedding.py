"""Embeddings of the noise level: a scalar per sample to a vector that a network can use."""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines at ``width / 2`` frequencies from 1 down to 1/10000 (Vaswani et al. 2017, Section 3.5).

    Made for inputs of the order of 1 to 1000, such as the label 999 t.
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * torch.arange(half) / max(1, half - 1)))

    def forward(self, noise: Tensor) -> Tensor:
        """``(B,)`` to ``(B, width)``."""
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines at fixed frequencies drawn from N(0, (2 pi scale)^2) (Tancik et al. 2020, Section 6).

    Made for inputs of the order of 1, such as log-SNR or ln(sigma / alpha) / 4; ``scale`` says how finely they are told apart.
    """

    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * scale * torch.randn(width // 2))

    def forward(self, noise: Tensor) -> Tensor:
        """``(B,)`` to ``(B, width)``."""
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def noise_embedding(kind: str, width: int, out: int, scale: float) -> nn.Sequential:
    """An embedding of ``width`` features, ``sinusoidal`` or ``fourier``, followed by two linear layers to ``out``.

    Raises:
        ValueError: ``kind`` is neither, or ``width`` is not an even positive number.
    """
    if width < 2 or width % 2:
        raise ValueError(f"the width of an embedding must be a positive even number, got {width}")
    if kind == "sinusoidal":
        features = SinusoidalEmbedding(width)
    elif kind == "fourier":
        features = FourierEmbedding(width, scale)
    else:
        raise ValueError(f"unknown embedding {kind!r}; choose one of sinusoidal, fourier")
    return nn.Sequential(features, nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))
