r"""Which steps of a chain a shorter chain keeps (Nichol and Dhariwal 2021, Section 4; Song, Meng and Ermon 2021, Appendix D).

    25       25 steps, spread evenly from the first to the last
    10,10    two equal parts of the chain, of each 10 steps, spread evenly from its first to its last
    ddim50   every m-th step from the first on, with the smallest m that gives 50

Where the chain does not divide into equal parts, the first of them are one step longer. A part of n steps that keeps k of them
keeps the positions 0, h, 2 h, ..., h = (n - 1) / (k - 1), rounded. As in the published code, positions are summed up in float64
and halves go to the even number: that decides where a position that ends in 1/2 falls.
"""

from itertools import accumulate, islice, repeat


def kept_steps(steps: int, respacing: str) -> tuple[int, ...]:
    """The kept steps of a chain of ``steps``, counted from 0, rising.

    Raises:
        ValueError: ``respacing`` is not of the form above, or the chain has no such steps.
    """
    if not isinstance(respacing, str):
        raise ValueError(f"respacing is a word such as '25', '10,10' or 'ddim50', got {respacing!r}")
    ddim = respacing.startswith("ddim")
    try:
        counts = [int(count) for count in respacing.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0 or (ddim and len(counts) > 1):
        raise ValueError(f"respacing is a number of steps, several for equal parts ('10,10'), or 'ddim50', got {respacing!r}")
    if sum(counts) < 2:
        raise ValueError(f"a chain has two or more steps, and respacing {respacing!r} keeps {sum(counts)}")
    if ddim:
        strides = (stride for stride in range(1, steps) if len(range(0, steps, stride)) == counts[0])
        if (stride := next(strides, None)) is None:
            raise ValueError(f"no stride takes exactly {counts[0]} of {steps} steps: choose another number than {respacing!r}")
        return tuple(range(0, steps, stride))
    kept, first = [], 0
    for part, count in enumerate(counts):
        length = steps // len(counts) + (part < steps % len(counts))
        if count > length:
            raise ValueError(f"respacing {respacing!r} keeps {count} of a part that has {length} steps")
        spread = (length - 1) / (count - 1) if count > 1 else 0.0
        kept += [first + round(position) for position in islice(accumulate(repeat(spread), initial=0.0), count)]
        first += length
    return tuple(kept)
