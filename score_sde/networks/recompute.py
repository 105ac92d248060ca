"""Gradient checkpointing: activations that are computed again instead of kept (Chen et al. 2016)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A part of a network that forgets its intermediate activations in training where ``recompute`` is set.

    The backward pass then runs ``compute`` a second time, with the same random numbers: less memory for a third more time,
    and the same gradients. Subclasses write ``compute`` in place of ``forward``.
    """

    recompute = False

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """``compute``, kept or recomputed."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)
        return self.compute(*inputs)

    def compute(self, *inputs: Tensor | None) -> Tensor:
        """What the part does."""
        raise NotImplementedError


def recompute_blocks(network: nn.Module, wanted: bool) -> None:
    """Set ``recompute`` in every part of ``network`` that has it."""
    for module in network.modules():
        if isinstance(module, Recomputed):
            module.recompute = wanted
