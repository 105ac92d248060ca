"""Small networks of score_sde_pytorch over the combinations of its options: a rule for their weights, and the scores they give.

The answers in ``published.npz`` were computed with the published implementation (yang-song/score_sde_pytorch, Apache-2.0) in
float64 (its sinusoidal embedding stays float32, as written there), with its upsampling convolution mended: there, the flip and
stride of ``upsample_conv_2d`` and the mode given to ``interpolate`` raise. Each case lists the mended calls that it needs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

PREFIX = "module.all_modules."


def cases() -> list[dict]:
    """Each case: number, name, settings (that project's keys), mended calls, keys ([key after PREFIX, shape], in order)."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def answer(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, t and the score there, float32. Discrete cases sit on the grid t = i / (num_scales - 1)."""
    with np.load(Path(__file__).with_suffix(".npz")) as file:
        x, t, score = (torch.from_numpy(file[f"{case['name']}/{part}"]) for part in ("x", "t", "score"))
    return x, t, score


def weights(case: dict) -> dict[str, torch.Tensor]:
    """State dict of the published network under DataParallel; key i is drawn from seed 1000 * number + i."""
    model = case["settings"]["model"]
    sigmas = np.exp(np.linspace(np.log(model["sigma_max"]), np.log(model["sigma_min"]), model["num_scales"]))
    state = {"module.sigmas": torch.from_numpy(sigmas)}
    for i, (key, shape) in enumerate(case["keys"]):
        normal = torch.from_numpy(np.random.RandomState(1000 * case["number"] + i).standard_normal(shape).astype(np.float32))
        if len(shape) > 1:  # the matrix of a NIN is (in, out)
            fan_in = shape[0] if key.endswith(".W") else np.prod(shape[1:])
            value = normal * float(fan_in) ** -0.5
        elif key.endswith(".W"):
            value = normal
        else:
            value = 0.2 * normal + (1.0 if key.endswith(".weight") else 0.0)
        state[PREFIX + key] = value
    return state


def checkpoint(case: dict) -> dict:
    """Content of a checkpoint file in that project's format; the raw model is half the average, so mixing them up shows."""
    state = weights(case)
    fixed = {"module.sigmas", f"{PREFIX}0.W"}  # a buffer and the frozen Fourier features: not in the average
    shadow = [value for key, value in state.items() if key not in fixed]
    group = {"lr": np.float64(2e-4), "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    return {
        "optimizer": {"state": {}, "param_groups": [{**group, "params": list(range(len(shadow)))}]},
        "model": {key: value if key in fixed else 0.5 * value for key, value in state.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadow},
        "step": 7,
    }
