"""The command ``completion``: a script by which a shell completes commands, options, solvers and configs."""

import argparse

from score_sde.cli.parser import build_parser
from score_sde.config import ConfigError, config_names
from score_sde.solvers import SOLVERS


def completion(options: argparse.Namespace, overrides: list[str]) -> int:
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs the package shtab: pip install 'score_sde[completion]'") from None
    parser = build_parser()
    known = {"--solver": [*SOLVERS, "tuned"], "--config": config_names()}
    places = {"--workdir": shtab.DIRECTORY, "--output": shtab.FILE, "--data": shtab.FILE, "--model_config": shtab.FILE}
    for command in parser.commands().values():
        for action in command._actions:
            name = action.option_strings[0] if action.option_strings else action.dest
            action.choices = known.get(name, action.choices)
            if place := places.get(name, shtab.FILE if name == "path" else None):
                action.complete = place  # type: ignore[attr-defined]  shtab looks for it
    print(shtab.complete(parser, shell=options.shell))
    return 0
