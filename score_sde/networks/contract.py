"""What a network says of itself, and what holds where it says nothing."""

from collections.abc import Mapping

from torch import nn

from score_sde.tensors import Condition


class Network(nn.Module):
    """The base of our networks. Any other module may state the same attributes; what it does not state is as here.

    Attributes:
        event: the shape of one sample, D in ``(B, *D)``; None where it does not say.
        classes: the number of classes where the condition is one, else 0.
        learned_variance: whether it returns twice the channels, the second half for the variance.
        knows_no_class: whether it may be told no class: the index ``classes``, or no condition.
        takes_logarithm: whether it takes the logarithm of the time that it is given.
        cond_shape: the shape of the condition of one sample, D in ``(B, *D)``, or such shapes by name where it takes several
            tensors; None where it takes no condition, or classes alone, or does not say.
        takes_float32: whether it takes x in float32 or better where its parameters are half precision.
    """

    event: tuple[int, ...] | None = None
    classes: int = 0
    learned_variance: bool = False
    knows_no_class: bool = True
    takes_logarithm: bool = False
    cond_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    takes_float32: bool = False


STATED = tuple(Network.__annotations__)
"""The names of these attributes."""


def require_condition(cond: Condition, count: int, shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ``ValueError`` unless ``cond`` is the condition of ``count`` samples that ``cond_shape`` states."""
    if isinstance(shape, Mapping):
        wanted: object = {name: (count, *part) for name, part in shape.items()}
    else:
        wanted = count, *shape
    if (given := shape_of(cond)) != wanted:
        raise ValueError(f"cond must have the shape {wanted}, got {given}")


def shape_of(cond: Condition) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """The shape of a condition, or the shapes of its parts."""
    return {name: tuple(part.shape) for name, part in cond.items()} if isinstance(cond, Mapping) else tuple(cond.shape)


def state(module: nn.Module, network: nn.Module) -> None:
    """Let ``module`` state what ``network`` does, by its own attributes or by default."""
    for name in STATED:
        setattr(module, name, getattr(network, name, getattr(Network, name)))
