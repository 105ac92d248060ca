"""Training from Python in one call: data in, a run directory out."""

import dataclasses
import json
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.checkpoint import latest_checkpoint
from score_sde.data import DATASETS, Arrays, DataError, Dataset, DataSource, DataSpec, DataWarning, array_file, read
from score_sde.distributed import require_one_process
from score_sde.files import read_npz, write_npz
from score_sde.inputs import require_kind
from score_sde.lock import sole_writer
from score_sde.model import ScoreModel
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES, DenoisingScoreMatching, Objective
from score_sde.run import Run, RunError, build_data, load, load_config
from score_sde.sdes import SDE, SDES
from score_sde.tables import OptionError, Table, options_of, require_name, section
from score_sde.training.options import TrainingOptions
from score_sde.training.prepare import about_earlier, prepare, write_run

Data = Tensor | np.ndarray | Path | str | Dataset | DataSource
"""What ``fit`` trains on."""

DATA = "data.npz"
"""File in a run directory of the data that ``fit`` was given in memory."""


def fit(
    data: Data,
    folder: Path | str,
    *,
    classes: Tensor | np.ndarray | None = None,
    levels: int = 0,
    sde: SDE | str = "vp",
    network: str = "",
    network_options: Mapping[str, Any] = {},
    parameterization: str = "edm",
    time_input: str = "edm",
    objective: Objective | str = DenoisingScoreMatching(),
    training: TrainingOptions = TrainingOptions(),
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Run:
    """Train a model on ``data`` in ``folder``, which ``load`` and every command then read.

    Where the folder holds a run of the same settings, training goes on from its newest checkpoint up to
    ``training.steps``. What may change then is the objective and how it is trained. A run that has taken all steps is loaded.

    Args:
        data: samples ``(N, *D)``, channels first; a ``.npy`` or ``.npz`` file, or a folder of images; a source; or a data set,
            which says itself what is held out. Of anything else a tenth is held out. Floating-point numbers are continuous,
            8-bit integers have 256 levels. What is given in memory is kept in the folder.
        folder: the run directory.
        classes: class indices ``(N,)`` of samples that are given as an array.
        levels: number of integer values ``0 ... levels - 1``, 0 to derive it.
        sde: an SDE, or its name in ``SDES``.
        network: a name in ``NETWORKS``; by default ``unet`` for signals and images, ``mlp`` for anything else.
        network_options: what the network is built with, beside the shape: ``{"width": 64, "classes": 10}`` for example.
        parameterization, time_input: as ``ScoreModel`` takes them.
        objective: what training makes small, or its name in ``OBJECTIVES``.
        training: how to train.
        seed: of the initial weights, batches, times and noise.
        device: where to train; the GPU where there is one, by default.
        progress: whether progress is shown.

    Returns:
        The run, with the averaged weights.

    Raises:
        DataError: the data cannot be used.
        RunError: the folder holds a run of other settings or data.
        OptionError: a choice is unknown, or an option is refused.
        TrainingError: the loss is not finite any more.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM stopped it; the checkpoint is saved, and the same call goes on.

    Example:
        run = fit(torch.randn(1000, 2), "runs/gaussian", sde=VPSDE(), training=TrainingOptions(steps=500))
    """
    require_one_process("fit")
    require_kind("training", training, TrainingOptions)
    if network:
        require_name("network", network, NETWORKS)
    folder = Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with sole_writer(folder):
        config: dict[str, Any] = {"seed": seed, "training": dataclasses.asdict(training)}
        config["sde"], config["objective"] = section(SDES, sde, kind="sde"), section(OBJECTIVES, objective, kind="objective")
        config["data"], arrays = _data_section(data, folder, classes, levels)
        kept = latest_checkpoint(folder / "checkpoints") is not None and (folder / DATA).is_file()
        if arrays and kept:
            _refuse_other_data(folder, arrays)
        found = array_file(**{**config["data"]["file"], "path": arrays}) if arrays else build_data(config)
        if isinstance(data, Dataset):
            found = found._replace(class_names=data.class_names)
        if not isinstance(data, Tensor | np.ndarray | Path | str):
            _warn_of_what_is_not_kept(data.spec, found.spec)
        config["network"] = section(NETWORKS, network or _network_for(found.spec.shape), "shape")
        _set(config["network"], network_options, "network", NETWORKS)
        config["model"] = options_of(ScoreModel, "network", "sde", "data")
        config["model"] |= {"parameterization": parameterization, "time_input": time_input, "sigma_data": None}
        if latest_checkpoint(folder / "checkpoints"):
            config = _continued(folder, config)
        trainer, known = prepare(folder, config, found, device=device)
        if arrays and not kept:
            write_npz(folder / DATA, arrays)
        stopped = None
        if trainer.state.step < training.steps:
            write_run(trainer, config, known)
            if trainer.state.step and (earlier := about_earlier(folder)):
                print(earlier)
            stopped = trainer.train(progress=progress)
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt(f"stopped at step {trainer.state.step}; the same call goes on from there")
    if stopped:
        raise SystemExit(128 + stopped)
    return load(folder, device=device)


def _warn_of_what_is_not_kept(given: DataSpec, measured: DataSpec) -> None:
    """Warn where continuous data comes with a scaling or limits of its own: a run measures them anew."""
    if measured.levels is not None:
        return
    pairs = zip(given.location, given.spread, measured.location, measured.spread, strict=True)
    lost = ""
    if not given.spread or any(abs(a - c) > 0.1 * d or abs(b - d) > 0.1 * d for a, b, c, d in pairs):
        lost = "a scaling"
    elif given.limits and given.limits != measured.limits:
        lost = "limits"
    if lost:
        warnings.warn(
            f"the data has {lost} of its own, which fit does not keep: the run measures location, spread and limits on its "
            "training samples (but one pair of limits for all coordinates is kept); to keep them, train with Trainer, on a "
            "ScoreModel of this DataSpec",
            DataWarning,
            stacklevel=3,
        )


def _network_for(shape: tuple[int, ...]) -> str:
    return "unet" if len(shape) in (2, 3) else "mlp"


def _data_section(data: Data, folder: Path, classes: Tensor | np.ndarray | None, levels: int) -> tuple[dict[str, Any], Arrays]:
    """The config's section of the data, and what is to be kept in the folder of data in memory."""
    if isinstance(data, Path | str):
        path = Path(data).expanduser().absolute()
        chosen = section(DATASETS, "folder" if path.is_dir() else "file", kind="data")
        if classes is not None:
            raise DataError("classes are those of an array: name their array in the file, or use folders of images")
        chosen[chosen["name"]]["path"] = str(path)
        if levels:
            _set(chosen, {"levels": levels}, "data", DATASETS)
        return chosen, Arrays()
    arrays, chosen = Arrays(), section(DATASETS, "file", kind="data")
    chosen["file"] |= {"path": str((folder / DATA).absolute()), "layout": "channels_first", "levels": levels}
    if isinstance(data, Tensor | np.ndarray):
        _add(arrays, "train", data, classes)
    else:
        if classes is not None or levels:
            raise DataError("a source says itself what its classes and levels are: leave these arguments away")
        spec = data.spec
        chosen["file"] |= {"levels": spec.levels or 0, "dequantize": spec.dequantize, "model_range": spec.model_range}
        if spec.levels is None and len(spec.limits) == 1 and spec.limits[0][0] < spec.limits[0][1]:
            chosen["file"]["limits"] = spec.limits[0]
        sides = {"train": data.train, "test": data.test} if isinstance(data, Dataset) else {"train": data}
        for side, source in sides.items():
            values, told = read(source, slice(None))
            if told is not None and source.classes is None:
                raise DataError("fit trains networks that are told classes, and the source has other conditions: use Trainer")
            _add(arrays, side, values, told)
    keys = {"key": "train", "classes": "train_classes", "test": "test", "test_classes": "test_classes"}
    chosen["file"] |= {option: name for option, name in keys.items() if name in arrays}
    return chosen, arrays


def _add(arrays: Arrays, side: str, values: Tensor | np.ndarray, classes: Any) -> None:
    """Add samples and their classes to ``arrays``; numpy has no bfloat16."""
    values = torch.as_tensor(values).detach().cpu()
    arrays[side] = (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()
    if classes is not None:
        arrays[f"{side}_classes"] = torch.as_tensor(classes).cpu().numpy()


def _refuse_other_data(folder: Path, arrays: Arrays) -> None:
    """Raise a ``RunError`` unless ``arrays`` are those that the run in ``folder`` was trained on."""
    kept = read_npz(folder / DATA)
    if kept.keys() != arrays.keys() or not all(np.array_equal(kept[name], arrays[name]) for name in kept):
        raise RunError(f"the data is not that which {folder} was trained on: give another directory")


def _set(chosen: dict[str, Any], options: Mapping[str, Any], kind: str, table: Table) -> None:
    """Set options of what is chosen in a section."""
    name = chosen["name"]
    require_name(kind, name, table)
    for key in options:
        if key not in chosen[name]:
            raise OptionError(f"{kind}.{name} has no option {key}; it has {', '.join(chosen[name])}")
    chosen[name] |= options


def _continued(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with which a run goes on; sections that ``fit`` does not set stay as they are saved."""
    saved = load_config(folder)[0]
    config["model"]["sigma_data"] = saved["model"].get("sigma_data")

    def plain(config: Mapping[str, Any], key: str) -> str:
        value = config[key]
        if isinstance(value, Mapping) and "name" in value:
            value = {"name": value["name"], **value[value["name"]]}
            value.pop("path", None)
        return json.dumps(value, sort_keys=True)

    differing = [key for key in ("seed", "data", "sde", "network", "model") if plain(saved, key) != plain(config, key)]
    if differing:
        raise RunError(f"{folder} was trained with another {', '.join(differing)}: give another directory")
    return {**saved, **config}
