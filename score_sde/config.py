"""Configs: what a run is made of, as an ml_collections ``ConfigDict``.

A config names each choice and holds one section per choice, generated from the signature of what it builds, so that a
default is written once, where it is used:

    config.sde.name = "vp"         which one
    config.sde.vp.beta_max         its options, and those of every other SDE beside it

A config file is a Python file with a function ``get_config()`` that starts from ``default_config()``.
"""

import ast
import difflib
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from score_sde.data import DATASETS
from score_sde.likelihood import LIKELIHOOD_SOLVERS, bits_per_dim, fit_dequantizer
from score_sde.model import ScoreModel
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES
from score_sde.run import RunError, check_like
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS
from score_sde.trainer import TrainingOptions


class ConfigError(ValueError):
    """A config cannot be read, or an override does not fit it; the message says which and what is allowed."""


def default_config() -> ConfigDict:
    """The defaults of everything. ``model.sigma_data`` is left open: it is then measured on the training data."""
    model = _options(ScoreModel, "network", "sde", "data")
    model["sigma_data"] = config_dict.placeholder(float)
    not_configured = ("solver", "target_error", "levels", "data", "cond", "seed", "moments", "name", "keep", "progress")
    likelihood = _options(bits_per_dim, *not_configured)
    likelihood |= {
        "target_error": config_dict.placeholder(float),
        "probes": config_dict.placeholder(int),
        "solver": _section(LIKELIHOOD_SOLVERS, "dual_weighted"),
    }
    likelihood["dequantizer"] = _options(fit_dequantizer, "data", "cond", "seed", "progress")
    config = {
        "seed": 0,
        "data": _section(DATASETS, "digits"),
        "sde": _section(SDES, "vp"),
        "network": _section(NETWORKS, "unet", "shape"),
        "model": model,
        "objective": _section(OBJECTIVES, "denoising"),
        "training": _options(TrainingOptions),
        "solver": _section(SOLVERS, "euler_maruyama"),
        "likelihood": likelihood,
    }
    return ConfigDict(config).lock()


def _section(table: Mapping[str, Callable], name: str, *left_out: str) -> dict[str, Any]:
    return {"name": name, **{key: _options(builder, *left_out) for key, builder in table.items()}}


def _options(builder: Callable, *left_out: str) -> dict[str, Any]:
    """The arguments of ``builder`` that have a default, with it."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in left_out}


def config_folder() -> Path:
    """The folder of the config files that come with the package."""
    here = Path(__file__).parent
    installed = here / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


def config_names() -> list[str]:
    """The names by which the package's config files can be given."""
    return sorted(path.stem for path in config_folder().glob("*.py"))


def read_config(source: str) -> ConfigDict:
    """The config of a file, given by its path or, for one that comes with the package, by its name.

    Raises:
        ConfigError: there is no such file, or it does not define a config.
    """
    path = Path(source)
    if not path.is_file() and os.sep not in source and not source.endswith(".py"):
        path = config_folder() / f"{source}.py"
    if not path.is_file():
        names = config_names()
        raise ConfigError(
            f"config {source!r} not found{_nearest(path.stem, names)}; there are {', '.join(names)}, or give a path"
        )
    spec = importlib.util.spec_from_file_location("score_sde_config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{source} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())} ({type(error).__name__})") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, start it from score_sde.config.default_config()")
    return config.lock()


def from_saved(saved: Mapping[str, Any]) -> ConfigDict:
    """The defaults with the values of a saved config.

    Raises:
        ConfigError: the saved config has a key or a type that is not of this version.
    """
    if not isinstance(saved, Mapping):
        raise ConfigError(f"config.json holds {saved!r} in place of a config")
    saved = _migrated(saved)
    config = default_config()

    def fill(target: ConfigDict, values: Mapping[str, Any], path: str) -> None:
        for key, value in values.items():
            if key not in target:
                raise ConfigError(f"config.json has an unknown key {path}{key}")
            default = target[key]
            if isinstance(value, Mapping) and isinstance(default, ConfigDict):
                fill(default, value, f"{path}{key}.")
                continue
            try:
                if isinstance(default, ConfigDict):
                    raise TypeError("a section is needed")
                if value is not None or default is not None:  # None is what a measurement takes the place of
                    check_like(value, target.get_type(key)() if default is None else default, f"{path}{key}")
                target[key] = tuple(value) if isinstance(value, list) else value
            except (RunError, TypeError) as error:
                raise ConfigError(f"config.json has a value of the wrong type for {path}{key}: {value!r}") from error

    fill(config, saved, "")
    return config


def _migrated(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved config in which the options of the objective are where they belong now: they were options of training."""
    training = saved.get("training")
    moved = set(training) & {"weighting", "times"} if isinstance(training, Mapping) else set()
    if not moved:
        return saved
    objective = {"name": "denoising", "denoising": {key: training[key] for key in moved}}
    return {**saved, "training": {key: training[key] for key in training if key not in moved}, "objective": objective}


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """``config`` with ``--config.key=value`` arguments applied to it.

    Raises:
        ConfigError: a key does not exist (the nearest that does is named), or a value is not of its type.
    """
    keys = flat(config)
    arguments = [_normalized(argument) for argument in arguments]
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if key not in keys:
            inside = [known for known in keys if known.startswith(f"{key}.")]
            inside.sort(key=lambda known: known != f"{key}.name")
            if inside:
                raise ConfigError(f"config.{key} is a section: set one of {', '.join(inside[:6])}{' ...' * (len(inside) > 6)}")
            section, _, last = key.rpartition(".")
            beside = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == section]
            if section and beside and not difflib.get_close_matches(last, beside, n=1):
                raise ConfigError(f"there is no config.{key}: config.{section} has {', '.join(beside)}")
            raise ConfigError(f"there is no config.{key}{_nearest(key, keys)}; score-sde config lists all keys")
        if not equals:
            raise ConfigError(f"config.{key} needs a value: --config.{key}={keys[key]!r}")
        _check_type(config, key, value)
    values = flags.FlagValues()
    argv = ["score-sde", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return values["config"].value


def _normalized(argument: str) -> str:
    return argument if argument.startswith("--") else f"-{argument}"


def _check_type(config: ConfigDict, key: str, value: str) -> None:
    """Raise a ``ConfigError`` unless ``value`` can be read as what ``key`` holds."""
    *path, last = key.split(".")
    for part in path:
        config = config[part]
    kind = config.get_type(last)
    try:
        if kind is tuple:
            if not all(isinstance(item, int | float) for item in tuple(ast.literal_eval(value))):
                raise TypeError("all tuples in a config hold numbers")
        elif kind is bool:
            flags.BooleanParser().parse(value)
        elif kind(value) != kind(value):
            raise ValueError("not a number")
    except (ValueError, TypeError, SyntaxError):
        example = f"a tuple such as {config[last]}" if kind is tuple else f"of type {kind.__name__}"
        raise ConfigError(f"config.{key} must be {example}, got {value!r}") from None


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every option of a config by its whole key, such as ``sde.vp.beta_max``."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, ConfigDict | Mapping)
        options |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return options


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """', did you mean ...' where something near is known: the whole key, or its last part."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        last = word.rsplit(".", 1)[-1]
        ends = {key.rsplit(".", 1)[-1]: key for key in known}
        close = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
    return f", did you mean {close[0]}?" if close else ""


def chosen_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config without the sections of what was not chosen, for reading."""
    brief: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and "name" in value:
            value = {"name": value["name"], value["name"]: value.get(value["name"], {})}
        brief[key] = chosen_only(value) if isinstance(value, Mapping) else value
    return brief
