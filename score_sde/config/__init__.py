"""Configs: what a run is made of, as an ml_collections ``ConfigDict``.

A config names each choice and holds one section per choice, generated from the signature of what it builds, so that a
default is written once, where it is used:

    config.sde.name = "vp"         which one
    config.sde.vp.beta_max         its options, and those of every other SDE beside it

A config file is a Python file with a function ``get_config()`` that starts from ``default_config()``.
"""

from score_sde.config.defaults import ConfigDict, ConfigError, chosen_only, default_config, flat
from score_sde.config.overrides import in_full, override
from score_sde.config.reading import config_folder, config_names, from_saved, read_config

__all__ = [
    "ConfigDict",
    "ConfigError",
    "chosen_only",
    "config_folder",
    "config_names",
    "default_config",
    "flat",
    "from_saved",
    "in_full",
    "override",
    "read_config",
]
