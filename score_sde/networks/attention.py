"""Self-attention over the positions of a signal or an image (Vaswani et al. 2017; Ho et al. 2020, Appendix B)."""

import math

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from score_sde.networks.recompute import Recomputed


class SelfAttention(Recomputed):
    """Attention of every position to all others, in a residual branch that starts at zero.

    Args:
        conv: ``nn.Conv1d`` or ``nn.Conv2d``.
        channels: features of each position.
        heads: number of attention heads, a divisor of ``channels``.
        groups: groups of the normalization.
        eps: of the normalization.
        rescale: divide the sum of input and branch by sqrt(2), so that its variance is kept.
    """

    def __init__(self, conv: type, channels: int, *, heads: int, groups: int, eps: float = 1e-5, rescale: bool = False):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be cut into {heads} attention heads")
        self.heads, self.rescale = heads, rescale
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = conv(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def compute(self, x: Tensor) -> Tensor:
        """``(B, C, *sides)`` to the same."""
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1).transpose(-1, -2)
        attended = scaled_dot_product_attention(*qkv.unbind(1)).transpose(-1, -2).reshape(x.shape)
        total = x + self.out(attended)
        return total / math.sqrt(2) if self.rescale else total
