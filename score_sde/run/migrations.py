"""What older versions wrote, brought to the form of today.

``config.json`` carries the number of its format. A file without one is of format 1, which versions up to 0.1.0 wrote.

    2    the options of denoising score matching are in the section ``objective``

A choice that had no options was saved as a word. ``tables.build`` and ``config.from_saved`` read a word as the name in the
section that the choice has today, so it needs no line in ``MOVED``.
"""

from collections.abc import Mapping
from typing import Any

from score_sde.data import DataSpec

FORMAT = 2
"""The format that is written today."""

MOVED = {
    "training.weighting": "objective.denoising.weighting",
    "training.times": "objective.denoising.times",
}
"""Key of a config in an older format -> its key today. The section of the new key then names the choice in it."""

SUPPLIED: dict[str, tuple[str, dict[str, Any]]] = {
    "file": ("layout", {"layout": "channels_first", "held_out_by": "position"}),
    "folder": ("as_before", {"as_before": True, "held_out_by": "position"}),
}
"""Kind of data -> the option whose absence shows that an early version wrote it, and what that version did."""


def migrated(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with its keys of today; one that has them already comes back equal."""
    current = _copied(config)
    for before, now in MOVED.items():
        *path, old = before.split(".")
        section: Any = current
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and old in section:
            kind, choice, option = now.split(".")
            target = current.setdefault(kind, {"name": choice})
            target.setdefault(choice, {}).setdefault(option, section.pop(old))
    return current


def supply(section: dict[str, Any], spec: DataSpec) -> None:
    """Add to a saved section of the data what an early version did where the defaults of today say otherwise."""
    name = section["name"]
    options = section.get(name, {})
    sign, values = SUPPLIED.get(name, ("", {}))
    if sign and options.get("path") and sign not in options:
        options |= values
        if name == "file":
            options["levels"] = options.get("levels") or spec.levels or 0


def _copied(value: Any) -> Any:
    return {key: _copied(part) for key, part in value.items()} if isinstance(value, Mapping) else value
