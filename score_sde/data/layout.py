"""What the axes of stored samples mean: channels first, channels last, or no channel at all.

Everything here works on events ``(C, *sides)``, channels first. An array does not say what its axes mean, and a reshape to
another order of axes mixes the values of all samples up. So an axis is taken for the channels only where that is certain:

    (D,)            a vector, without channels
    (1, L)          a signal of one channel
    (C, L)          a signal of C channels, where C is at most 4 and L more than 4
    (C, *sides)     an image or a volume of C channels, where C is at most 4, and the sides are all longer than 4, or all
                    alike and longer than C

Anything else is refused until the user says what it is: by ``layout``, or by ``shape``.
"""

import math

from torch import Tensor

from score_sde.data.spec import DataError

LAYOUTS = ("channels_first", "channels_last", "no_channel")
"""What can be said of stored samples: ``(C, *sides)``, ``(*sides, C)`` or ``(*sides)``."""

FEW = 4
"""As many channels as an axis may have that is taken for them."""


def arranged(values: Tensor, source: str, *, shape: tuple[int, ...] = (), layout: str = "") -> Tensor:
    """Stored samples ``(N, *event)`` as events ``(N, C, *sides)``, or as vectors ``(N, D)``.

    Args:
        values: the samples as they are stored.
        source: their file, for messages.
        shape: the event shape that is wanted; empty to take it from the file. The samples may lack axes of length 1 or have
            more of them. They may be flat. They are flattened where ``shape`` is a vector's.
        layout: one of ``LAYOUTS``, or empty where it is certain.

    Raises:
        DataError: the meaning of an axis is not certain, or the samples cannot be given the shape without mixing them up.
    """
    event = tuple(values.shape[1:])
    if layout and layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if shape and (min(shape) < 1 or math.prod(shape) != math.prod(event)):
        raise DataError(f"samples of {source} have shape {event}, which does not fill {tuple(shape)}")
    flat = len(_sides(event)) < 2
    if flat and len(_sides(shape)) > 1:
        return _unflattened(values, source, shape, layout)
    if layout == "no_channel":
        values = values.unsqueeze(1)
    elif layout == "channels_last":
        if len(event) < 2:
            raise DataError(
                f"samples of {source} are vectors of {math.prod(event)} values and have no channels: leave layout away"
            )
        values = values.movedim(-1, 1)
    elif not layout and not shape and not _is_certain(event):
        ways = _ways(event)
        choice = ", ".join(f"{name} for {meaning}" for name, meaning in ways.items())
        raise DataError(
            f"samples of {source} have shape {event}, and which axis holds the channels is not certain: give layout, {choice}",
            remedy=("file.layout", next(iter(ways))),
        )
    found = tuple(values.shape[1:])
    if not shape or found == tuple(shape):
        return values.contiguous()
    if _sides(found) == _sides(shape) or len(_sides(shape)) < 2:
        return values.reshape(len(values), *shape)
    remedy = None
    if found == (*shape[1:], shape[0]) and layout != "channels_last":
        how, remedy = "its channels come last: give layout='channels_last'", ("file.layout", "channels_last")
    elif layout and event == tuple(shape):
        how, remedy = "they have it as they are stored: give layout='channels_first'", ("file.layout", "channels_first")
    else:
        how = "shape may add or remove axes of length 1, flatten, or unflatten; transpose the array for anything else"
    with_layout = f", with layout={layout!r} {found}" if layout else ""
    raise DataError(
        f"{source} has samples of shape {event}{with_layout}; to reshape them to {tuple(shape)} would mix their values up: "
        f"{how}",
        remedy=remedy,
    )


def _is_certain(event: tuple[int, ...]) -> bool:
    first, *sides = event
    if not sides or math.prod(event) == 1:
        return True
    if len(sides) == 1:
        return first == 1 or first <= FEW < sides[0]
    return first <= FEW and (min(sides) > FEW or (len(set(sides)) == 1 and first < sides[0]))


def _sides(shape: tuple[int, ...]) -> list[int]:
    """The axes that count for the order of the values."""
    return [side for side in shape if side > 1]


def _ways(event: tuple[int, ...]) -> dict[str, str]:
    """The layouts that are possible and what each means, the likeliest first."""
    ways = {
        "channels_last": f"{event[-1]} channels in the last axis",
        "channels_first": f"{event[0]} channels in the first",
        "no_channel": "images or fields without an axis of channels",
    }
    likely = "channels_last" if event[-1] <= FEW else "no_channel"
    return {likely: ways[likely], **ways}


def _unflattened(values: Tensor, source: str, shape: tuple[int, ...], layout: str) -> Tensor:
    """Flat samples in a shape of several axes: with several channels, it must be known how they were flattened."""
    if layout == "channels_last":
        return values.reshape(len(values), *shape[1:], shape[0]).movedim(-1, 1).contiguous()
    if shape[0] > 1 and layout != "channels_first":
        raise DataError(
            f"samples of {source} are flat, and {tuple(shape)} has {shape[0]} channels: give layout='channels_first' where the "
            f"values lie channel by channel, or channels_last where the {shape[0]} values of a point lie beside one another "
            "(for one channel, let shape begin with 1)",
            remedy=("file.layout", "channels_first"),
        )
    return values.reshape(len(values), *shape)
