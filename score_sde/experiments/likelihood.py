"""The likelihood of integers under a run: with each dequantization, and by each bound.

    run = score_sde.load("runs/digits")
    record = score_sde.bits_per_dim(run.model, values, target_error=0.01)     one likelihood
    dequantizer = learned_dequantizer(run, lambda: data.train)
    records = measure_bounds(run, values, dequantizer)                        all of them
    print(records["ODE, variational"].sentence())

Each record says by which protocol it was measured.
"""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from score_sde.chain import chain_nodes
from score_sde.checkpoint import load_weights
from score_sde.data import DataSource, View
from score_sde.distributed import is_main, together
from score_sde.files import DamagedError, read_metadata, write_safetensors
from score_sde.likelihood import (
    BitsPerDim,
    VariationalBound,
    VariationalDequantizer,
    bits_per_dim,
    continuous_bound,
    discrete_bound,
    fit_dequantizer,
)
from score_sde.likelihood.evaluation import weights_digest
from score_sde.model import score_for_class
from score_sde.run import Run, read_weights
from score_sde.transitions import VARIANCES

DEQUANTIZER = "dequantizer.safetensors"
"""File of the learned dequantization in a run."""


def measure_bounds(
    run: Run,
    values: Tensor,
    dequantizer: VariationalDequantizer,
    *,
    class_: int | None = None,
    likelihood: Callable[..., BitsPerDim] = bits_per_dim,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, BitsPerDim | VariationalBound]:
    """The likelihood of integers with each dequantization, and the variational bounds, each by its name.

    Args:
        run: the run.
        values: integers ``(N, *D)``.
        dequantizer: a learned one, as ``learned_dequantizer`` gives it.
        class_: the class of all values.
        likelihood: ``bits_per_dim``, with options of one's own: ``partial(bits_per_dim, target_error=0.01)``.
        batch_size, seed, progress: as for ``bits_per_dim``, and for the bounds.

    Raises:
        ValueError: the data of the run is continuous.
    """
    require_integers(run)
    score = score_for_class(run.model, class_)
    measured = partial(likelihood, score, values, name=model_name(run), batch_size=batch_size, seed=seed, progress=progress)
    records: dict[str, BitsPerDim | VariationalBound] = {
        "ODE, uniform": measured(),
        "ODE, uniform, truncation": measured(truncation=True),
        "ODE, truncated normal": measured(dequantization="truncated_normal"),
        "ODE, variational": measured(dequantization=dequantizer),
    }
    steps = len(chain_nodes(run.model.sde))
    for variance in VARIANCES:
        if variance != "learned" or run.model.learned_variance:
            records[f"chain of {steps} steps, {variance}"] = discrete_bound(
                score,
                values,
                variance=variance,
                sampled_steps=min(100, steps - 1),
                seed=seed,
                batch_size=batch_size,
                progress=progress,
            )
    records["continuous time"] = continuous_bound(score, values, times=100, seed=seed, batch_size=batch_size, progress=progress)
    return records


def model_name(run: Run) -> str:
    """What a record calls the model of a run."""
    return f"averaged weights of step {run.step}"


def require_integers(run: Run) -> None:
    """Raise a ``ValueError`` unless the data of a run is integer."""
    if run.model.data.levels is None:
        raise ValueError("the bounds are on probabilities of integers, and the data of this run is continuous")


def learned_dequantizer(
    run: Run,
    train: Callable[[], DataSource],
    *,
    couplings: int = 4,
    width: int = 32,
    steps: int = 150,
    batch_size: int = 32,
    learning_rate: float = 2e-2,
    progress: bool = False,
) -> VariationalDequantizer:
    """The learned dequantization of a run: of ``dequantizer.safetensors``, or trained now and kept there.

    Under ``torchrun`` the first process trains it, and the others wait.

    Args:
        run: the run.
        train: gives the training data; called only if the dequantization has to be trained, where there is none for these
            weights and options.
        couplings, width, steps, batch_size, learning_rate, progress: as for ``fit_dequantizer``.
    """
    options = {
        "couplings": couplings,
        "width": width,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    path, made = run.folder / DEQUANTIZER, {"weights": str(weights_digest(run.model)), "options": json.dumps(options)}

    def learn() -> None:
        if is_main() and _made(path) != made:  # it is not there, damaged, of another checkpoint, or trained otherwise
            fitted = fit_dequantizer(run.model, View(train(), described=run.model.data), progress=progress, **options)
            write_safetensors(path, fitted.state_dict(), made)

    together(learn)
    dequantizer = VariationalDequantizer(run.model.data, couplings=couplings, width=width)
    load_weights(dequantizer, read_weights(path, "cpu")[0], path)
    return dequantizer.to(run.model.device).eval().requires_grad_(False)


def _made(path: Path) -> dict[str, str] | None:
    """For which weights a dequantizer was trained, and how; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        return read_metadata(path)
    except DamagedError as error:
        warnings.warn(f"{error}: it is trained anew", stacklevel=2)
        return None
