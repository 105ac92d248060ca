"""Changes of a config that are typed: ``--config.section.key=value``."""

import ast
from collections.abc import Sequence
from functools import reduce
from operator import getitem

from absl import flags
from ml_collections import config_flags

from score_sde.config.defaults import ConfigDict, ConfigError, flat
from score_sde.tables import nearest


def in_full(arguments: Sequence[str], config: ConfigDict) -> list[str]:
    """Each of ``arguments`` as ``--config.key=value``; a section that is given a value is given its ``name``."""
    sections = {key.removesuffix(".name") for key in flat(config) if key.endswith(".name")}
    full = []
    for argument in arguments:
        key, equals, value = argument.lstrip("-").removeprefix("config.").partition("=")
        full.append(f"--config.{key}{'.name' if key in sections else ''}{equals}{value}")
    return full


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """``config`` itself, with ``--config.key=value`` arguments applied to it.

    Raises:
        ConfigError: a key does not exist (the nearest that does is named), or a value is not of its type.
    """
    keys, arguments = flat(config), in_full(arguments, config)
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if key not in keys:
            raise ConfigError(_unknown(key, config))
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
    return config


def _unknown(key: str, config: ConfigDict) -> str:
    """What to say of a key that does not exist."""
    options = flat(config)
    keys = [*options, *(known.removesuffix(".name") for known in options if known.endswith(".name"))]
    section, _, last = key.rpartition(".")
    inside = [known for known in keys if known.startswith(f"{key}.")]
    if inside:
        return f"config.{key} is a section: set one of {', '.join(inside[:6])}{' ...' * (len(inside) > 6)}"
    if f"{section}.name" in options and last in reduce(getitem, section.split("."), config):
        return f"config.{key} has no options: choose it by --config.{section}={last}"
    beside = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    if meant := nearest(last, beside):
        return f"there is no config.{key}, did you mean {beside[meant]}?"
    within = f"{section}.{options.get(f'{section}.name')}.{last}"
    if within in keys:  # an option of what is chosen
        return f"there is no config.{key}, did you mean {within}?"
    if section and beside:
        return f"there is no config.{key}: config.{section} has {', '.join(beside)}"
    ends = {known.rpartition(".")[2]: known for known in keys}
    meant = nearest(key, keys) or ends.get(nearest(last, ends) or "")
    return f"there is no config.{key}{f', did you mean {meant}?' if meant else ''}; score-sde config lists all keys"


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
