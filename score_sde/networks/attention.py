"""Self-attention over the positions of a signal or an image (Vaswani et al. 2017; Ho et al. 2020, Appendix B)."""

import math

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from score_sde.networks.recompute import Recomputed


class SelfAttention(Recomputed):
    """Attention of every position to all others, in a residual branch that starts at zero.

    Args:
        channels: features of each position.
        heads: number of attention heads, a divisor of ``channels``.
        groups: groups of the normalization.
        eps: of the normalization.
        rescale: divide the sum of input and branch by sqrt(2), so that its variance is kept.
    """

    def __init__(self, channels: int, *, heads: int, groups: int, eps: float = 1e-5, rescale: bool = False):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be cut into {heads} attention heads")
        self.heads, self.rescale = heads, rescale
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def compute(self, x: Tensor) -> Tensor:
        """``(B, C, *sides)`` to the same."""
        positions = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(positions).unflatten(-1, (3, self.heads, -1))  # features last: fused kernels need that
        attended = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
        total = x + self.out(attended.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
        return total / math.sqrt(2) if self.rescale else total
