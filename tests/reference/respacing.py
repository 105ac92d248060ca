"""Tables of betas and shorter chains of some of their steps, as openai/guided-diffusion has them.

The answers in ``respacing.npz`` were computed by the published code, in float64 (commit
22e0df8183507e13a7813f8d38d51b072ca1e67c).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Respaced(NamedTuple):
    """A chain: the schedule and number of steps of its table, its respacing, and the kept steps, betas and alpha^2."""

    schedule: str
    steps: int
    respacing: str
    kept: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray


def chains() -> list[Respaced]:
    """Every chain."""
    with np.load(Path(__file__).with_suffix(".npz")) as file:
        parts = ("kept", "betas", "alphas_cumprod")
        names = sorted({name.rpartition("/")[0] for name in file.files})
        return [
            Respaced(schedule, int(steps), respacing, *(file[f"{schedule}/{steps}/{respacing}/{part}"] for part in parts))
            for schedule, steps, respacing in (name.split("/") for name in names)
        ]
