"""A classifier of noisy data: the way down and the middle of a U-Net, then a pool (Dhariwal and Nichol 2021, Appendix H)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from score_sde.networks.recompute import recompute_blocks
from score_sde.networks.unet import Design, Encoder
from score_sde.tables import require_name


class UNetClassifier(Encoder):
    """Logits of classes for events ``(C, L)`` or ``(C, H, W)`` at any noise level; the defaults are those of 64 x 64.

    It is called as ``classifier(x, noise)``, and knows nothing of SDEs. log p(y given x) is the log-softmax of the logits.

    Args:
        shape: event shape, channels first.
        classes: number of classes.
        pool: ``attention`` of the mean over all positions to each of them (Radford et al. 2021, Section 2.4), or ``mean``.
        recompute: recompute activations in the backward pass, to save memory.

    ``UNet`` explains the other options.

    Raises:
        ValueError: as ``UNet`` does, or there are fewer than two classes.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int = 128,
        multipliers: tuple[float, ...] = (1, 2, 3, 4),
        blocks: int = 4,
        attention: tuple[int, ...] = (1, 2, 3),
        head_width: int = 64,
        heads: int = 0,
        dropout: float = 0.0,
        resample: str = "block",
        modulation: str = "scale_shift",
        embedding: str = "sinusoidal",
        fourier_scale: float = 1.0,
        stem: int = 0,
        group_width: int = 0,
        pool: str = "attention",
        recompute: bool = False,
    ):
        require_name("pool", pool, ("attention", "mean"))
        if classes < 2:
            raise ValueError(f"a classifier needs at least two classes, got {classes}")
        design = Design(
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            head_width=head_width,
            heads=heads,
            dropout=dropout,
            resample=resample,
            modulation=modulation,
            embedding=embedding,
            fourier_scale=fourier_scale,
            stem=stem,
            group_width=group_width,
            signal=len(shape) == 2,
        )
        super().__init__(shape, design)
        channels = self.kept[-1]
        self.norm = design.norm(channels)
        self.pool = None
        if pool == "attention":
            halvings = len(multipliers) - 1
            positions = math.prod(math.ceil(side / 2**halvings) for side in shape[1:])
            self.pool = AttentionPool(channels, positions, design.heads_of(channels))
        self.last = nn.Linear(channels, classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        recompute_blocks(self, recompute)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``x`` ``(B, C, *sides)`` and noise levels ``(B,)`` to logits ``(B, classes)``."""
        features = silu(self.norm(self.encode(x, silu(self.embedding(noise)))[-1]))
        return self.last(features.flatten(2).mean(dim=2) if self.pool is None else self.pool(features))


class AttentionPool(nn.Module):
    """What the mean over all positions finds in them: attention with that one query, over them and itself.

    Args:
        channels: features of each position.
        positions: how many there are; each has a learned vector, and so has the mean.
        heads: number of attention heads, a divisor of ``channels``.
    """

    def __init__(self, channels: int, positions: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be cut into {heads} attention heads")
        self.heads = heads
        self.position = nn.Parameter(torch.randn(1 + positions, channels) / math.sqrt(channels))
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *sides)`` to ``(B, C)``."""
        positions = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + self.position
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1)
