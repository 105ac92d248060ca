"""How settings, weights and answers of other projects' networks are kept beside this file, numbers alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Stored:
    """The networks of one project: ``PROJECT.json``, and for each of them a file of answers and files of weights."""

    project: str

    def cases(self) -> dict[str, dict]:
        """Each case by name: its settings, parts, keys ([name, where it begins, shape])."""
        return {case["name"]: case for case in json.loads((HERE / f"{self.project}.json").read_text())}

    def answers(self, case: dict) -> dict[str, torch.Tensor]:
        """Inputs and answers."""
        return self._load(case["name"])

    def weights(self, case: dict) -> dict[str, torch.Tensor]:
        """The state dict, float32."""
        numbers = torch.cat([self._load(f"{case['name']}_{part}")["weights"] for part in range(case["parts"])])
        return {name: numbers[start : start + math.prod(shape)].reshape(shape) for name, start, shape in case["keys"]}

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        with np.load(HERE / f"{self.project}_{name}.npz") as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
