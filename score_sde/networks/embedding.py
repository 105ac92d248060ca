"""Embeddings of the noise level and of the class: a number per sample to a vector that a network can use."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from score_sde.inputs import require_classes
from score_sde.tables import require_name


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines at ``width / 2`` frequencies, in equal ratios from 1 down to 1/10000.

    Made for inputs of the order of 1 to 1000, such as the label 999 t.

    Args:
        width: number of sines and cosines.
        open_end: leave out 1/10000 itself, 10000^(-2 i / width) for i < width / 2 (Vaswani et al. 2017, Section 3.5). DDPM
            and its descendants for continuous time have it (Ho et al. 2020, code).
    """

    def __init__(self, width: int, *, open_end: bool = False):
        super().__init__()
        self.count, self.open_end = width // 2, open_end

    def forward(self, noise: Tensor) -> Tensor:
        """``(B,)`` to ``(B, width)``, in the dtype of ``noise``."""
        index = torch.arange(self.count, dtype=noise.dtype, device=noise.device)
        intervals = self.count if self.open_end else max(1, self.count - 1)
        angles = noise[:, None] * torch.exp(-math.log(10000) * index / intervals)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines at fixed frequencies drawn from N(0, (2 pi scale)^2) (Tancik et al. 2020, Section 6).

    Made for inputs of the order of 1, such as log-SNR or ln(sigma / alpha) / 4; ``scale`` says how finely they are told apart.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * scale * torch.randn(width // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.element_size() < 4:  # half precision would make them others
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, noise: Tensor) -> Tensor:
        """``(B,)`` to ``(B, width)``, in the dtype of ``noise``."""
        angles = noise[:, None] * self.frequencies.to(noise.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """The noise level, and the class where there are classes, as a vector of ``out`` features.

    Sines and cosines go through two linear layers; to that, each class adds a learned vector. One vector more, of index
    ``classes``, stands for no class at all: with the class left out now and then in training, one network learns the
    conditional and the unconditional score (Ho and Salimans 2022, Algorithm 1).

    Args:
        kind: ``sinusoidal``, ``transformer`` for sines and cosines that leave out the lowest frequency, or ``fourier``.
        width: number of sines and cosines, even.
        out: number of features.
        scale: frequency scale of the Fourier embedding.
        classes: number of classes, 0 for none.
        no_class: whether there is the vector that stands for no class.
        early: add what stands for the class to the sines and cosines, before the layers: a linear layer of its index as a
            vector of length sqrt(``classes``), or of 0 for no class (Karras et al. 2022, code).
        activation: between the linear layers.

    Raises:
        ValueError: ``kind`` is none of these, ``width`` is not an even positive number, or ``classes`` is negative.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        out: int,
        *,
        scale: float = 1.0,
        classes: int = 0,
        no_class: bool = True,
        early: bool = False,
        activation: nn.Module | None = None,
    ):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"the width of an embedding must be a positive even number, got {width}")
        if classes < 0:
            raise ValueError(f"classes must not be negative, got {classes}")
        require_name("embedding", kind, ("sinusoidal", "transformer", "fourier"))
        if kind == "fourier":
            self.features = FourierEmbedding(width, scale)
        else:
            self.features = SinusoidalEmbedding(width, open_end=kind == "transformer")
        self.layers = nn.Sequential(nn.Linear(width, out), activation or nn.SiLU(), nn.Linear(out, out))
        self.number, self.no_class, self.early = classes, no_class, early
        self.classes: nn.Module | None = None
        if classes and early:
            self.classes = _LinearClasses(classes, width)
        elif classes:
            self.classes = nn.Embedding(classes + no_class, out)
            nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Noise levels ``(B,)`` and classes ``(B,)``, None for no class, to ``(B, out)``.

        Raises:
            ValueError: classes are given where there are none, are missing where no vector stands for none, or are not ``(B,)``
                integers of the range there is.
        """
        told = self._told(noise, cond)
        features = self.features(noise).to(self.layers[0].weight.dtype)
        if told is None:
            return self.layers(features)
        return self.layers(features + told) if self.early else self.layers(features) + told

    def _told(self, noise: Tensor, cond: Tensor | None) -> Tensor | None:
        """The vector of each sample's class; None where there are no classes."""
        if self.classes is None:
            if cond is not None:
                raise ValueError("this network takes no condition: build it with a number of classes, classes=10 for example")
            return None
        if cond is None:
            if not self.no_class:
                raise ValueError(f"this network needs one of its {self.number} classes for every sample: pass cond")
            cond = torch.full(noise.shape, self.number, device=noise.device)
        require_classes(cond, len(noise), self.number, no_class=self.no_class)
        return self.classes(cond.long())


class _LinearClasses(nn.Module):
    """A linear layer of the index as a vector of 0 and one number, sqrt(classes); all are 0 where the index is ``classes``."""

    def __init__(self, classes: int, out: int):
        super().__init__()
        self.linear = nn.Linear(classes, out)

    def forward(self, index: Tensor) -> Tensor:
        columns = math.sqrt(self.linear.in_features) * self.linear.weight.T
        return embedding(index, pad(columns, (0, 0, 0, 1))) + self.linear.bias
