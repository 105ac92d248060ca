"""What a caller gives is refused where it can only be a mistake: counts, intervals, times, states, conditions.

A check that looks at the values of a tensor makes a GPU wait. Such checks are made once, where a call enters the package, and
never in the step of a solver.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def whole(name: str, value: Any, least: int) -> int:
    """``value`` as an int.

    Raises:
        ValueError: it is a fraction, NaN, a truth value or no number, or it is below ``least``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def require_kind(name: str, thing: object, kind: type) -> None:
    """Raise a ``ValueError`` unless ``thing`` is an instance of ``kind``."""
    if isinstance(thing, kind):
        return
    got = f"the class {thing.__name__}: pass {thing.__name__}(...)" if isinstance(thing, type) else repr(thing)[:80]
    raise ValueError(f"{name} must be an instance of {kind.__name__}, got {got}")


def require_finite(numbers: Mapping[str, float]) -> None:
    """Raise a ``ValueError`` that names the first of ``numbers`` that is NaN, infinite or no number."""
    for name, value in numbers.items():
        try:
            finite = math.isfinite(value)
        except TypeError:
            finite = False
        if not finite:
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def require_interval(name: str, ends: Sequence[float] | Sequence[Tensor]) -> None:
    """Raise a ``ValueError`` unless ``ends`` are two finite numbers that rise.

    They may be two tensors, an interval for each coordinate; single intervals may then be a point, as of a constant coordinate.
    """
    try:
        pair = tuple(ends)
    except TypeError:  # one number
        pair = (ends,)
    if any(isinstance(end, Tensor) and end.numel() > 1 for end in pair):
        low, high = (torch.as_tensor(end) for end in pair) if len(pair) == 2 else (torch.ones(1), torch.zeros(1))
        rising = low.isfinite().all() and high.isfinite().all() and (low <= high).all() and (low < high).any()
        pair = tuple("a tensor" if isinstance(end, Tensor) else end for end in pair)
    else:
        real = all(isinstance(end, Real | Tensor) for end in pair)
        rising = len(pair) == 2 and real and all(math.isfinite(end) for end in pair) and pair[0] < pair[1]
    if not rising:
        raise ValueError(f"{name} must be two finite numbers, the smaller one first, got {pair}")


def require_time(name: str, t: Tensor | float, low: float, high: float, *, below: bool = False) -> None:
    """Raise a ``ValueError`` unless ``t``, a number or a tensor, lies in [low, high]; in [low, high) with ``below``.

    ``low`` is an SDE's t_min, or 0, and ``high`` its T.
    """
    times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
    if times.is_complex() or not ((times < high if below else times <= high) & (times >= low)).all():
        start, end = f"t_min = {low:g}" if low else "0", ", T excluded" if below else ""
        raise ValueError(f"{name} must lie between {start} and T = {high:g}{end}, got {times.tolist()}")


def require_float(name: str, x: object) -> None:
    """Raise a ``ValueError`` unless ``x`` is a tensor of real floating-point numbers."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a tensor, got a {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must hold floating-point numbers, got {x.dtype}: convert it, by {name}.float() for example")


def require_batch(name: str, shape: Sequence[int], event: Sequence[int] | None) -> None:
    """Raise a ``ValueError`` unless ``shape`` is ``(B, *D)`` with a sample or more, D being ``event`` where that is known."""
    wanted = "(B, *D)" if event is None else f"(B, {', '.join(map(str, event))})"
    try:
        shape = tuple(shape)
    except TypeError:
        raise ValueError(f"{name} must be {wanted}, where B is the number of samples, got {shape!r}") from None
    if len(shape) < 2 or (event is not None and shape[1:] != tuple(event)):
        raise ValueError(f"{'samples' if name == 'shape' else name} must have the shape {wanted}, got {shape}")
    if shape[0] < 1:
        raise ValueError(f"a batch has at least one sample, got none: {name} has the shape {shape}")
    for side in shape:
        whole("a side of the shape", side, 1)


def require_times(t: Tensor, count: int) -> None:
    """Raise a ``ValueError`` unless ``t`` is a tensor ``(B,)`` of a time for each of ``count`` samples."""
    if not isinstance(t, Tensor) or t.shape != (count,):
        got = f"one of shape {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise ValueError(f"t must be a tensor of shape {(count,)}, one time for each sample, got {got}")


def require_states(name: str, x: Tensor, event: Sequence[int] | None = None) -> None:
    """Raise a ``ValueError`` unless ``x`` is a batch ``(B, *D)`` of finite floating-point numbers; ``event`` is D if known."""
    require_float(name, x)
    require_batch(name, x.shape, event)
    if not x.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values: remove or replace them")


def require_classes(cond: object, count: int, classes: int, *, no_class: bool = False) -> None:
    """Raise a ``ValueError`` unless ``cond`` is one class from 0 to ``classes`` - 1 for each of ``count`` samples.

    ``no_class`` allows ``classes`` itself, which stands for no class. The range is looked at on the CPU alone: elsewhere the
    check would have to wait for the device, which stops at such an index itself.
    """
    if not isinstance(cond, Tensor) or cond.shape != (count,) or cond.is_floating_point() or cond.is_complex():
        given = f"{cond.dtype} of shape {tuple(cond.shape)}" if isinstance(cond, Tensor) else repr(cond)
        raise ValueError(f"classes must be integers of shape {(count,)}, one per sample, got {given}")
    if cond.dtype == torch.bool:
        raise ValueError(f"classes must be integers of shape {(count,)}, one per sample, got truth values")
    highest = classes if no_class else classes - 1
    if cond.device.type == "cpu" and len(cond) and not 0 <= cond.min() <= cond.max() <= highest:
        extra = f", and {classes} is no class" if no_class else ""
        raise ValueError(f"classes go from 0 to {classes - 1}{extra}, got {cond.min()} to {cond.max()}")
