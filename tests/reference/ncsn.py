"""Losses and Langevin dynamics of NCSN and NCSNv2: two small networks, inputs, and the answers of the published code.

The answers in ``ncsn.npz`` were computed by ermongroup/ncsn (commit 7f27f4a1) and ermongroup/ncsnv2 (commit 1bcea03b), in
float64 from weights and inputs in float32; ``ism_...`` by autograd, as neither has an exact loss. The levels were rounded to
float32.

``techniques`` are Techniques 1, 2 and 4 of Song and Ermon (2020), computed from the paper: ``data`` with its largest distance
``sigma_max`` and the ``pair``; a row of ``choices`` for each model of the paper, with the ``published`` number of levels and
step: D, sigma_max, sigma_min, T, the ratio of levels, their number before rounding, the step (6 digits) and its variance, both
again at the ratio of the rounded number; at the published number the ratio, the overlap, the step, its variance, and that of
the published step.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Each case: its name, and its settings."""


def answers(name: str) -> dict[str, Tensor]:
    """Everything of a case that is no weight, floating-point numbers in float64."""
    with np.load(Path(__file__).with_suffix(".npz")) as file:
        found = {key.removeprefix(f"{name}/"): torch.from_numpy(file[key]) for key in file if key.startswith(f"{name}/")}
    return {key: value.double() if value.is_floating_point() else value for key, value in found.items()}


class Published(nn.Module):
    """The network of a case, float64: linear layers and softplus on flat events. It is not told the noise level."""

    def __init__(self, name: str):
        super().__init__()
        dim, hidden = CASES[name]["dim"], CASES[name]["hidden"]
        layers = nn.Linear(dim, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus(), nn.Linear(hidden, dim)
        self.net = nn.Sequential(*layers)
        given = answers(name)
        self.double().load_state_dict({key: given[f"weights/{key}"] for key in self.state_dict()})

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``x`` ``(B, *D)`` to the same."""
        return self.net(x.flatten(1)).reshape(x.shape)
