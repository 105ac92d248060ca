"""The run directory: everything that a trained model is, as plain files.

config.json          the config as plain values, the description of the data, and the identity of the run
checkpoints/         numbered checkpoints of a training run
model.safetensors    the weights alone, of a model that was imported or exported
metrics.jsonl        a line per ``log_every`` steps
moments.safetensors  mean and covariance (or spectrum) of the training data in model coordinates
train.lock           there while the run is being trained
tuned.json           solvers chosen by measurement, one for each number of evaluations
samples/  compare/   what was made from it, a name for each protocol
likelihood_*.json  likelihood_*.npz   records of likelihoods, and the values of single samples
bounds/  dequantizer.safetensors      records of all bounds, and the learned dequantization

Every file that is read again has a digest in it (``score_sde.files``).
"""

import dataclasses
import inspect
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch

from score_sde.checkpoint import CheckpointError, load_newest, load_weights, same_run
from score_sde.data import DATASETS, IMAGES, Dataset, DataSpec, Moments, image_spec
from score_sde.files import DamagedError, read_json, read_metadata, read_safetensors, write_json, write_safetensors
from score_sde.model import ScoreModel
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES, Objective
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS, Solver
from score_sde.solvers.fixed_steps import GridSolver
from score_sde.solvers.tuned import Choice, Tuned, as_options
from score_sde.tables import OptionError, as_tuples, build, check_like
from score_sde.tensors import ran_out_of_memory

Config = Mapping[str, Any]


class RunError(ValueError):
    """A directory is not a run, or a config is not complete; the message says what to do."""


def build_data(config: Config) -> Dataset:
    """The data that ``config`` names."""
    return build(DATASETS, config["data"], kind="data")


def data_spec(config: Config) -> DataSpec:
    """The description of the data that ``config`` names, without reading data that is always the same."""
    name = config["data"]["name"]
    if name not in IMAGES:
        return build_data(config).spec
    options = config["data"].get(name, {})
    return image_spec(name, **{key: as_tuples(options[key]) for key in ("dequantize", "model_range") if key in options})


def build_solver(config: Config) -> Solver:
    """The solver that ``config`` names."""
    return build(SOLVERS, config["solver"], kind="solver")


def build_objective(config: Config) -> Objective:
    """The objective that ``config`` names."""
    return build(OBJECTIVES, config["objective"], kind="objective")


def build_model(config: Config, spec: DataSpec) -> ScoreModel:
    """The model that ``config`` describes, with initial weights drawn from ``config["seed"]``."""
    check_like(config["seed"], 0, "seed")
    if config["seed"] < 0:
        raise OptionError(f"seed must not be negative, got {config['seed']}")
    sde = build(SDES, config["sde"], kind="sde")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = build(NETWORKS, config["network"], spec.shape, kind="network")
    options = {key: value for key, value in config["model"].items() if value is not None}
    known = inspect.signature(ScoreModel).parameters
    for key in set(options) & set(known):
        check_like(options[key], known[key].default, f"model.{key}")
    try:
        return ScoreModel(network, sde, spec, **options)
    except (TypeError, ValueError) as error:
        raise OptionError(f"model: {error}") from error


class KnownData(NamedTuple):
    """What a run remembers of the data that it was trained on; empty where it is not known, as in old runs.

    ``fingerprint`` is that of ``score_sde.data.fingerprint``. ``class_names`` are in the order of the class indices.
    """

    fingerprint: str = ""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run that was loaded: the model with its averaged weights, and where it comes from."""

    folder: Path
    config: Config
    model: ScoreModel
    step: int
    checkpoint: Path
    known_data: KnownData
    identity: str | None = None


def save_config(folder: Path, config: Config, spec: DataSpec, *, identity: str, known_data: KnownData = KnownData()) -> None:
    """Write ``config.json``; ``identity`` tells the run from all others."""
    saved = {"config": config, "data_spec": dataclasses.asdict(spec), "run": identity, "data": known_data._asdict()}
    write_json(folder / "config.json", saved)


def new_identity() -> str:
    """What tells a new run from all others."""
    return uuid.uuid4().hex


def load_identity(folder: Path, *, accept_edited_config: bool = False) -> str | None:
    """The identity of a run, None where an early version wrote it or there is no run."""
    path = Path(folder) / "config.json"
    identity = _read_config(path, accept_edited_config).get("run") if path.is_file() else None
    if not isinstance(identity, str | None):
        raise RunError(f"{path} is damaged or of another program: its run is {str(identity)[:40]}")
    return identity


def load_config(folder: Path, *, accept_edited_config: bool = False) -> tuple[dict[str, Any], DataSpec]:
    """Read ``config.json``: the config, and the description of the data.

    Args:
        folder: the run's.
        accept_edited_config: whether ``config.json`` may have been edited by hand.

    Raises:
        RunError: the directory is not a run, or its config.json is damaged.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise RunError(
            f"{folder} is not a run directory: it has no config.json; train one with score-sde train "
            f"--workdir={quote(str(folder))}"
        )
    try:
        saved = _read_config(path, accept_edited_config)
        config = saved["config"]
        if not isinstance(config, dict):
            raise TypeError(f"its config is {config!r}")
        missing = {"seed", "data", "sde", "network", "model"} - set(config)
        if missing:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
        spec = DataSpec(**saved["data_spec"])
        _complete(config["data"], spec)
        return config, spec
    except RunError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged or of another program: {error}") from error


def _read_config(path: Path, accept_edited: bool) -> dict[str, Any]:
    try:
        return read_json(path, accept_edited=accept_edited)
    except DamagedError as error:
        edited = "; --accept_edited_config takes it as it is" if "edited" in str(error) else ""
        raise RunError(f"{error}{edited}") from error


def load_known_data(folder: Path, *, accept_edited_config: bool = False) -> KnownData:
    """What the run in ``folder`` remembers of the data that it was trained on.

    Raises:
        RunError: its config.json is damaged.
    """
    path = Path(folder) / "config.json"
    saved = _read_config(path, accept_edited_config).get("data", {})
    try:
        known = KnownData(saved.get("fingerprint", ""), tuple(saved.get("class_names", ())))
        if not all(isinstance(text, str) for text in (known.fingerprint, *known.class_names)):
            raise TypeError(f"what it says of the data is {saved!r}")
        return known
    except (AttributeError, TypeError) as error:
        raise RunError(f"{path} is damaged or of another program: {error}") from error


def _complete(section: dict[str, Any], spec: DataSpec) -> None:
    """Add to a saved data section what the version before did where today's options say otherwise."""
    options = section.get(section["name"], {})
    if section["name"] == "file" and options.get("path") and "layout" not in options:
        options |= {"layout": "channels_first", "levels": options.get("levels") or spec.levels or 0, "held_out_by": "position"}
    if section["name"] == "folder" and options.get("path") and "as_before" not in options:
        options |= {"as_before": True, "held_out_by": "position"}


def load(folder: Path | str, *, device: torch.device | str = "cpu", accept_edited_config: bool = False) -> Run:
    """Load a run: its newest sound checkpoint's averaged weights in a ``ScoreModel`` in evaluation mode.

    A warning says where newer checkpoints are damaged.

    A directory without checkpoints, as an import or an export makes it, gives the weights in its ``model.safetensors``.
    Nothing in the directory is executed.

    Args:
        folder: the run's.
        device: where the model is to be.
        accept_edited_config: whether ``config.json`` may have been edited by hand.

    Raises:
        RunError: the directory is not a run, or a file in it is damaged.
        CheckpointError: it has no weights, damaged ones, or those of another run.
    """
    folder = Path(folder)
    config, spec = load_config(folder, accept_edited_config=accept_edited_config)
    identity = load_identity(folder, accept_edited_config=accept_edited_config)
    newest = load_newest(folder / "checkpoints", device)
    if newest is not None:
        path, state = newest
        if "ema" not in state:
            raise CheckpointError(f"{path} lacks ema: it is not a checkpoint of a training run")
        same_run(state, identity, path)
        weights, step = state["ema"], state["step"]
    elif (path := folder / WEIGHTS).is_file():
        weights, metadata = read_weights(path, device)
        same_run(metadata, identity, path)
        step = int(metadata.get("step", "0"))
    else:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it with score-sde train --workdir={quote(str(folder))}")
    try:
        model = build_model(config, spec).to(device)
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{folder / 'config.json'} is damaged or of another program: {error}") from error
    except OptionError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise RunError(f"{folder / 'config.json'} describes a model that needs more memory than there is") from error
    load_weights(model, weights, path)
    model.moments = load_moments(folder, spec, identity=identity)
    known = load_known_data(folder, accept_edited_config=accept_edited_config)
    return Run(folder, config, model.eval().requires_grad_(False), step, path, known, identity)


WEIGHTS = "model.safetensors"
"""File of the weights in a run that has no checkpoints."""


def save_model(
    folder: Path,
    config: Config,
    model: ScoreModel,
    *,
    step: int,
    moments: Moments | None = None,
    known_data: KnownData = KnownData(),
) -> None:
    """Make ``folder`` a run of ``model``, which ``config`` describes: config.json, the weights, and moments if there are any.

    The weights are a safetensors file of the model's state dict; the network's own begin with ``network.``.

    Raises:
        RunError: the directory holds a run already.
    """
    if (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already: give another directory")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, and a directory is to be written: give another name")
    identity = new_identity()
    metadata = {"format": "score_sde model 1", "step": str(step), "run": identity}
    write_safetensors(folder / WEIGHTS, model.state_dict(), metadata)
    if moments is not None:
        save_moments(folder, moments, identity=identity)
    save_config(folder, config, model.data, identity=identity, known_data=known_data)  # last: then it is a run


def load_initial_weights(folder: Path, model: ScoreModel) -> None:
    """Load the weights of an imported or exported model into ``model``."""
    path = folder / WEIGHTS
    load_weights(model, read_weights(path, model.device)[0], path)


def read_weights(path: Path, device: torch.device | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights in a ``model.safetensors``, and the words about them."""
    try:
        weights, metadata = read_safetensors(path, device)
    except DamagedError as error:
        raise CheckpointError(str(error)) from error
    if not metadata.get("step", "0").isdecimal():
        raise CheckpointError(f"{path} says that it is of step {metadata['step'][:40]!r}")
    return weights, metadata


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
        RunError: the file is damaged, not of such data, or of another run than that of ``identity``.
    """
    path = folder / "moments.safetensors"
    again = f"score-sde train --workdir={quote(str(folder))} makes it anew"
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_safetensors(path)
        _check_moments(tensors, spec)
    except (DamagedError, KeyError, ValueError) as error:
        raise RunError(f"{path} is damaged: remove it, {again} ({error})") from error
    if identity and metadata.get("run", identity) != identity:
        raise RunError(f"{path} is of another run than this one: put that of this run in its place, or {again}")
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


def save_choice(folder: Path, choice: Choice, about: Config) -> None:
    """Add a tuned solver, and ``about``, how it was chosen, to ``tuned.json``.

    It takes the place of one for as many evaluations and for the same ``class`` of ``about``, if any.
    """
    path = folder / TUNED
    entries = _tuned_entries(path) if path.is_file() else []
    measured = {"nfe": choice.nfe, "error": choice.error, "standard": choice.standard}
    measured |= {name: list(getattr(choice, name)) for name in ("quantiles", "standard_quantiles")}
    solvers = {"solver": as_options(choice.solver, SOLVERS), "rival": as_options(choice.rival, SOLVERS)}
    entry = {**measured, **solvers, "about": dict(about)}
    entries = [other for other in entries if _chosen_for(other) != _chosen_for(entry)] + [entry]
    write_json(path, {"choices": sorted(entries, key=lambda entry: entry["nfe"])})


def has_tuned(folder: Path, class_: int | None = None) -> bool:
    """Whether solvers were chosen for a run and this class."""
    path = Path(folder) / TUNED
    return path.is_file() and any(of in (None, class_) for _, of in map(_chosen_for, _tuned_entries(path)))


def load_tuned(folder: Path, *, class_: int | None = None, step: int | None = None, identity: str | None = None) -> Tuned:
    """The solvers that were chosen for a run.

    Args:
        folder: the run's.
        class_: choices for this class come before those for all classes.
        step: the training step of the weights in use; a warning says where a choice was made for others.
        identity: that of the run; a warning says where a choice was made for another run.

    Raises:
        RunError: none were chosen, or ``tuned.json`` is damaged.
    """
    path = Path(folder) / TUNED
    again = f"score-sde tune --workdir={quote(str(folder))}"
    if class_ is not None:
        again += f" {quote(f'--class={_class_title(folder, class_)}')}"
    if not path.is_file():
        raise RunError(f"no solver was tuned for {folder} yet: {again}")
    entries = _tuned_entries(path)
    known = {_chosen_for(entry): entry for entry in entries}
    entries = [e for (nfe, of), e in known.items() if of == class_ or (of is None and (nfe, class_) not in known)]
    if known and not entries:
        classes = ", ".join(_class_title(folder, of) for of in sorted({of for _, of in known}))
        raise RunError(f"solvers were tuned for {folder}, but only for class {classes}: {again}")
    foreign = sorted({e["nfe"] for e in entries if identity and e["about"].get("run", identity) != identity})
    if foreign:
        budgets = ",".join(map(str, foreign))
        warnings.warn(
            f"the solvers for {budgets} evaluations were tuned for another run: {again} --nfe={budgets}", stacklevel=2
        )
    stale = {e["nfe"]: e["about"]["step"] for e in entries if step is not None and e["about"].get("step", step) != step}
    if stale:
        budgets, steps = (list(map(str, numbers)) for numbers in (sorted(stale), sorted(set(stale.values()))))
        warnings.warn(
            f"the solvers for {', '.join(budgets)} evaluations were tuned at training step {', '.join(steps)}, and this is "
            f"step {step}: {again} --nfe={','.join(budgets)}",
            stacklevel=2,
        )
    try:
        return Tuned(tuple(map(_choice, entries)), more=again)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _class_title(folder: Path | str, class_: int) -> str:
    """The name of a class, or its number."""
    known = Path(folder) / "config.json"
    names = load_known_data(folder, accept_edited_config=True).class_names if known.is_file() else ()
    return names[class_] if class_ < len(names) else str(class_)


def _chosen_for(entry: Config) -> tuple[int, int | None]:
    """The evaluations and the class of an entry."""
    return entry["nfe"], entry["about"].get("class")


def _choice(entry: Config) -> Choice:
    solver, rival = (build_solver({"solver": entry[key]}) for key in ("solver", "rival"))
    if not isinstance(solver, GridSolver):
        raise ValueError(f"{solver} has no steps of its own")
    if solver.with_budget(entry["nfe"]).steps < solver.steps:
        raise ValueError(f"{solver} takes more than {entry['nfe']} evaluations")
    names = ("quantiles", "standard_quantiles")  # older files have none
    for key in ("error", "standard"):
        check_like(entry[key], 0.0, key)
    for key in names:
        check_like(entry.get(key, ()), (), key)
    spread = [tuple(map(float, entry.get(name, ()))) for name in names]
    return Choice(int(entry["nfe"]), solver, float(entry["error"]), float(entry["standard"]), rival, *spread)


def _tuned_entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = read_json(path)["choices"]
        for nfe, class_ in map(_chosen_for, entries):
            if type(nfe) is not int or nfe < 1 or not (class_ is None or (type(class_) is int and class_ >= 0)):
                raise TypeError(f"nfe is {nfe!r} and class {class_!r}")
        if not all(type(entry["about"].get("step", 0)) in (int, type(None)) for entry in entries):
            raise TypeError("a step is no number")
        return entries
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged or of another version: remove it, score-sde tune makes it anew ({error})")


TUNED = "tuned.json"
"""File of the tuned solvers in a run."""
