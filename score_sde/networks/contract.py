"""What a network says of itself, and what holds where it says nothing."""

from torch import nn


class Network(nn.Module):
    """The base of our networks. Any other module may state the same attributes; what it does not state is as here.

    Attributes:
        classes: the number of classes where the condition is one, else 0.
        learned_variance: whether it returns twice the channels, the second half for the variance.
        knows_no_class: whether it may be told no class: the index ``classes``, or no condition.
        takes_logarithm: whether it takes the logarithm of the time that it is given.
        cond_shape: the shape of the condition of one sample, D in ``(B, *D)``; None where it does not say.
    """

    classes: int = 0
    learned_variance: bool = False
    knows_no_class: bool = True
    takes_logarithm: bool = False
    cond_shape: tuple[int, ...] | None = None


STATED = tuple(Network.__annotations__)
"""The names of these attributes."""


def state(module: nn.Module, network: nn.Module) -> None:
    """Let ``module`` state what ``network`` does, by its own attributes or by default."""
    for name in STATED:
        setattr(module, name, getattr(network, name, getattr(Network, name)))
