"""``moments.safetensors``: mean and covariance, or spectrum, of the data that a run was trained on."""

from collections.abc import Mapping
from pathlib import Path

import torch

from score_sde.data import DataSpec, Moments
from score_sde.files import DamagedError, read_metadata, read_safetensors, write_safetensors
from score_sde.run.errors import UnusableMoments


def save_moments(folder: Path, moments: Moments, *, identity: str) -> None:
    """Write ``moments.safetensors`` of the run of this ``identity``."""
    tensors = {name: value for name, value in moments._asdict().items() if value is not None}
    write_safetensors(folder / "moments.safetensors", tensors, {"run": identity})


def has_moments(folder: Path, *, identity: str) -> bool:
    """Whether there is a sound ``moments.safetensors``, of this run or of an early version, which does not say of which."""
    path = folder / "moments.safetensors"
    try:
        return path.is_file() and read_metadata(path).get("run", identity) == identity
    except DamagedError:
        return False


def load_moments(folder: Path, spec: DataSpec, *, identity: str | None = None) -> Moments | None:
    """The moments of training data of this description, None where the run has none.

    Raises:
        UnusableMoments: the file is damaged, not of such data, or of another run than that of ``identity``.
    """
    path = folder / "moments.safetensors"
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_safetensors(path)
        _check_moments(tensors, spec)
    except (DamagedError, KeyError, ValueError) as error:
        raise UnusableMoments(folder, f"{path} is damaged: remove it ({error})") from error
    if identity and metadata.get("run", identity) != identity:
        raise UnusableMoments(folder, f"{path} is of another run than this one: put that of this run in its place")
    return Moments(tensors["mean"], tensors.get("covariance"), tensors.get("spectrum"))


def _check_moments(tensors: Mapping[str, torch.Tensor], spec: DataSpec) -> None:
    shapes = {"mean": spec.shape, "covariance": (spec.dim, spec.dim), "spectrum": spec.shape}
    if "mean" not in tensors or len(tensors) != 2:
        raise ValueError(f"it holds {', '.join(sorted(tensors))}, not a mean and a covariance or spectrum")
    for name, value in tensors.items():
        if tuple(value.shape) != shapes[name] or not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"its {name} {tuple(value.shape)} of {value.dtype} is none of data of shape {spec.shape}")
        variances = value.diagonal() if name == "covariance" else value
        if name != "mean" and (variances < 0).any():
            raise ValueError(f"its {name} has negative variances")
