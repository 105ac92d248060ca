"""A memory for functions of an SDE: what was computed for an SDE once is known for all that are the same.

Equality of SDEs will not do: a subclass that is no dataclass of its own is equal to another whose attributes differ, fields may
be lists, and a tensor may change in place, as a learned schedule does. So an SDE is told by its class and all its attributes:
numbers, words and tuples by value, a tensor by which it is and how often it was changed, anything else by which it is.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

from torch import Tensor

PLAIN = (int, float, str, tuple, type(None))


class _Told:
    """An SDE as the key of a cache; it holds what it is told by, so that no two things have one identity."""

    __slots__ = ("held", "sde", "state")

    def __init__(self, sde: Any):
        self.sde = sde
        self.held = vars(sde) | {name: getattr(sde, name) for name in _slots(type(sde))}
        self.state = (type(sde), *self.held, *map(_state, self.held.values()))

    def __hash__(self) -> int:
        return hash(self.state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Told) and self.state == other.state


@lru_cache(maxsize=64)
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(name for each in kind.__mro__ for name in getattr(each, "__slots__", ()))


def _state(value: Any) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, list):
        return tuple(map(_state, value))
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    return id(value)


def remembered(maxsize: int) -> Callable[[Callable], Callable]:
    """Decorate a function whose first argument is an SDE, the others hashable, to keep its last ``maxsize`` values."""

    def decorate(function: Callable) -> Callable:
        known = lru_cache(maxsize)(lambda told, *arguments: function(told.sde, *arguments))

        @wraps(function)
        def call(sde: Any, *arguments: Any) -> Any:
            return known(_Told(sde), *arguments)

        return call

    return decorate
