"""The command ``completion``: a script by which a shell completes commands, options, solvers and configs.

In bash it also completes the keys of a config after ``--config.``, and the names that can be chosen. Other shells would show
these hundreds of keys to whoever looks for an option of the command.
"""

import argparse

from score_sde.cli.parser import build_parser
from score_sde.config import ConfigDict, ConfigError, config_names, default_config, flat
from score_sde.solvers import SOLVERS

KEYS_LAST = """
# keys of a config are offered to who has typed --config.
_score_sde() {
  _shtab_score_sde "$@"
  [[ ${COMP_WORDS[COMP_CWORD]} == --config.* ]] && return
  local word kept=()
  for word in "${COMPREPLY[@]}"; do [[ $word == --config.* ]] || kept+=("$word"); done
  COMPREPLY=("${kept[@]}")
}
complete -o bashdefault -F _score_sde score-sde"""


def completion(options: argparse.Namespace, overrides: list[str]) -> int:
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion needs the package shtab: pip install 'score_sde[completion]'") from None
    parser = build_parser()
    known = {"--solver": [*SOLVERS, "tuned"], "--config": config_names()}
    places = {"--workdir": shtab.DIRECTORY, "--output": shtab.FILE, "--data": shtab.FILE, "--model_config": shtab.FILE}
    keys = _keys(default_config()) if options.shell == "bash" else {}
    for command in parser.commands().values():
        for action in command._actions:
            name = action.option_strings[0] if action.option_strings else action.dest
            action.choices = known.get(name, action.choices)
            if place := places.get(name, shtab.FILE if name == "path" else None):
                action.complete = place  # type: ignore[attr-defined]  shtab looks for it
        for key, choices in keys.items():
            if key.split(".")[0] in command.get_default("sections"):
                command.add_argument(f"--config.{key}", choices=choices)
    print(shtab.complete(parser, shell=options.shell), end=f"{KEYS_LAST}\n" if keys else "\n")
    return 0


def _keys(config: ConfigDict) -> dict[str, list[str] | None]:
    """The keys of a config, and the names that can be chosen where a key is a section."""
    keys: dict[str, list[str] | None] = {}
    for key in flat(config):
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        names = [name for name in section if name != "name"] if last == "name" else None
        keys[".".join(path) if names else key] = names
    return keys
