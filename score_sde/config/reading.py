"""Configs from files: a config file in Python, and the config that a run has saved."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_sde.config.defaults import ConfigDict, ConfigError, default_config
from score_sde.run.migrations import migrated
from score_sde.tables import OptionError, check_like, did_you_mean


def config_folder() -> Path:
    """The folder of the config files that come with the package."""
    here = Path(__file__).parent.parent
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
            f"config {source!r} not found{did_you_mean(path.stem, names)}; there are {', '.join(names)}, or give a path"
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
    saved = migrated(saved)
    config = default_config()

    def fill(target: ConfigDict, values: Mapping[str, Any], path: str) -> None:
        for key, value in values.items():
            if key not in target:
                raise ConfigError(f"config.json has an unknown key {path}{key}")
            default = target[key]
            if isinstance(default, ConfigDict):
                if isinstance(value, str) and "name" in default:  # a choice that had no options yet
                    value = {"name": value}
                if isinstance(value, Mapping):
                    fill(default, value, f"{path}{key}.")
                    continue
            try:
                if isinstance(default, ConfigDict):
                    raise TypeError("a section is needed")
                if value is not None or default is not None:  # None stands for what is measured
                    check_like(value, target.get_type(key)() if default is None else default, f"{path}{key}")
                target[key] = tuple(value) if isinstance(value, list) else value
            except (OptionError, TypeError) as error:
                raise ConfigError(f"config.json has a value of the wrong type for {path}{key}: {value!r}") from error

    fill(config, saved, "")
    return config
