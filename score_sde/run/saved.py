"""``config.json``: the config of a run, the description of its data, and which run it is."""

import dataclasses
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from score_sde.checkpoint import latest_checkpoint
from score_sde.data import DataSpec
from score_sde.files import DamagedError, read_json, write_json
from score_sde.run.building import Config
from score_sde.run.errors import EditedConfig, NotARun, RunError, damaged
from score_sde.run.migrations import FORMAT, migrated, supply


class KnownData(NamedTuple):
    """What a run remembers of the data that it was trained on; empty where it is not known, as in old runs.

    ``fingerprint`` is that of ``score_sde.data.fingerprint``. ``class_names`` are in the order of the class indices.
    """

    fingerprint: str = ""
    class_names: tuple[str, ...] = ()


class Begun(NamedTuple):
    """What an older version did for a run: the format that it wrote, and the number of steps that it trained."""

    format: int
    steps: int


def save_config(folder: Path, config: Config, spec: DataSpec, *, identity: str, known_data: KnownData = KnownData()) -> None:
    """Write ``config.json``; ``identity`` tells the run from all others.

    Where an older version began the run that is in ``folder``, the file keeps saying so.
    """
    begun = load_begun(folder, accept_edited_config=True)
    saved = {"format": FORMAT, "config": config, "data_spec": dataclasses.asdict(spec), "run": identity}
    saved |= {"data": known_data._asdict()} | ({"begun": begun._asdict()} if begun else {})
    write_json(folder / "config.json", saved)


def load_begun(folder: Path, *, accept_edited_config: bool = False) -> Begun | None:
    """What an older version trained of the run in ``folder``; None where this one began it, or there is no run.

    Training goes on from there with other random numbers than that version would have drawn.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    saved = _read(path, accept_edited_config)
    newest = latest_checkpoint(Path(folder) / "checkpoints")
    if "begun" in saved:
        try:
            return Begun(int(saved["begun"]["format"]), int(saved["begun"]["steps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
    return Begun(saved.get("format", 1), int(newest.stem)) if saved.get("format", 1) < FORMAT and newest else None


def new_identity() -> str:
    """What tells a new run from all others."""
    return uuid.uuid4().hex


def load_identity(folder: Path, *, accept_edited_config: bool = False) -> str | None:
    """The identity of a run, None where an early version wrote it or there is no run."""
    path = Path(folder) / "config.json"
    identity = _read(path, accept_edited_config).get("run") if path.is_file() else None
    if not isinstance(identity, str | None):
        raise damaged(path, f"its run is {str(identity)[:40]}")
    return identity


def load_config(folder: Path, *, accept_edited_config: bool = False) -> tuple[dict[str, Any], DataSpec]:
    """Read ``config.json``: the config, in the form of today, and the description of the data.

    Args:
        folder: the run's.
        accept_edited_config: whether ``config.json`` may have been edited by hand.

    Raises:
        NotARun: there is no config.json.
        EditedConfig: it was edited by hand.
        RunError: it is damaged, or of a newer version.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise NotARun(folder)
    saved = _read(path, accept_edited_config)
    try:
        if not isinstance(saved["config"], dict):
            raise TypeError(f"its config is {saved['config']!r}")
        config = migrated(saved["config"])
        missing = {"seed", "data", "sde", "network", "model"} - set(config)
        if missing:
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
        spec = DataSpec(**saved["data_spec"])
        supply(config["data"], spec)
        return config, spec
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _read(path: Path, accept_edited: bool) -> dict[str, Any]:
    try:
        saved = read_json(path, accept_edited=accept_edited)
    except DamagedError as error:
        raise (EditedConfig if "edited" in str(error) else RunError)(str(error)) from error
    number = saved.get("format", 1)
    if type(number) is not int or number < 1:
        raise damaged(path, f"its format is {str(number)[:40]}")
    if number > FORMAT:
        raise RunError(
            f"{path} was written by a newer version of score_sde, in format {number}, and this version reads formats up to "
            f"{FORMAT}: install the newer version"
        )
    return saved


def load_known_data(folder: Path, *, accept_edited_config: bool = False) -> KnownData:
    """What the run in ``folder`` remembers of the data that it was trained on.

    Raises:
        RunError: its config.json is damaged.
    """
    path = Path(folder) / "config.json"
    saved = _read(path, accept_edited_config).get("data", {})
    try:
        known = KnownData(saved.get("fingerprint", ""), tuple(saved.get("class_names", ())))
        if not all(isinstance(text, str) for text in (known.fingerprint, *known.class_names)):
            raise TypeError(f"what it says of the data is {saved!r}")
        return known
    except (AttributeError, TypeError) as error:
        raise damaged(path, error) from error
