"""Losses of single steps of discrete chains, and a loss-aware sampler of steps, as openai/guided-diffusion has them.

The answers in ``chain.npz`` were computed by the published code (commit 22e0df8183507e13a7813f8d38d51b072ca1e67c) in float64:
each of its casts to float32 was turned into one to float64. A case holds integers from 0 to 255, noise, the steps of four
samples, and the outputs of a network with learned variance and of one without. An answer is named as there, by its kind,
prediction, variance and loss or clipping.
"""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__)


def cases() -> dict[str, dict]:
    """Name -> the table of betas, as arguments of ``ddpm_schedule``, its respacing, and the names of the answers in order."""
    return {case["name"]: case for case in json.loads(HERE.with_suffix(".json").read_text())}


def arrays(name: str) -> dict[str, torch.Tensor]:
    """The inputs of a case and its ``answers`` ``(answers, 4)``; of ``loss_aware``, all that its sampler was given and gave."""
    with np.load(HERE.with_suffix(".npz")) as file:
        return {key.partition("/")[2]: torch.from_numpy(file[key]) for key in file.files if key.startswith(f"{name}/")}
