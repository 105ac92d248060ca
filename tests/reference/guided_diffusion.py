"""Small networks of guided-diffusion: their settings, weights and answers.

The answers were computed with the published implementation (openai/guided-diffusion, MIT, commit
22e0df8183507e13a7813f8d38d51b072ca1e67c) on a CPU: ``k_f32`` as it is published, ``k_f64`` with float64 in place of float32
everywhere. The weights are random. The larger ones are windows, each at a place of its own, of the same numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).with_suffix(".json")


def cases() -> dict[str, dict]:
    """Each case by name: project, constructor and flags in its own keys, parts, keys ([name, where it begins, shape])."""
    return {case["name"]: case for case in json.loads(HERE.read_text())}


def answers(case: dict) -> dict[str, torch.Tensor]:
    """Inputs and answers."""
    return _load(HERE.with_name(f"guided_diffusion_{case['name']}.npz"))


def weights(case: dict) -> dict[str, torch.Tensor]:
    """The state dict, float32."""
    files = [HERE.with_name(f"guided_diffusion_{case['name']}_{part}.npz") for part in range(case["parts"])]
    numbers = torch.cat([_load(file)["weights"] for file in files])
    return {name: numbers[start : start + math.prod(shape)].reshape(shape) for name, start, shape in case["keys"]}


def _load(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}
