"""The data of a run: where it lies, whether it is what the run was trained on, and what its classes are called."""

import shlex
import warnings
from pathlib import Path

import torch
from torch import Tensor

from score_sde.config import ConfigDict
from score_sde.data import DataError, Dataset, blocks, fingerprint, load_array
from score_sde.data.layout import arranged
from score_sde.run import KnownData, Run, RunError, build_data


def locate(config: ConfigDict, folder: Path) -> list[Path]:
    """Make the path of the config's data absolute, so that the run finds it from anywhere.

    A relative path, as it is typed or as old runs have it, starts in the current directory; where nothing is there, in the
    run's folder or the nearest folder above it that has it. Nothing changes where the data is nowhere.

    Returns:
        Where it was looked for in vain.
    """
    section = config.data.get(config.data.name)
    if not isinstance(section, ConfigDict) or not section.get("path"):
        return []
    typed, here, run = Path(section.path).expanduser(), Path.cwd(), folder.absolute()
    # a run may have been moved with the data that ``fit`` keeps in it
    places = [typed, run / typed.name] if typed.is_absolute() else [place / typed for place in (here, run, *run.parents)]
    for place in places:
        if place.exists():
            section.path = str(place)
            if place != here / typed:
                missed = f"{typed} is not there" if typed.is_absolute() else f"{typed} is not in {here}"
                warnings.warn(f"{missed}; it is taken from {place}", stacklevel=2)
            return []
    return places


def data_of(config: ConfigDict, folder: Path) -> Dataset:
    """The data that ``config`` names, for the run in ``folder``.

    Raises:
        DataError: it is not there, or cannot be used.
    """
    missed = locate(config, folder)
    if missed and config.data.name in ("file", "folder"):  # others say themselves what they need
        option = f"--config.data.{config.data.name}.path="
        raise DataError(f"{missed[0]} not found{_elsewhere(missed[1:])}: if the data was moved, say where, {option}")
    return build_data(config.to_dict())


def _elsewhere(places: list[Path]) -> str:
    return f", nor in {places[0].parent} and the folders above it" if places else ""


def run_data(run: Run, config: ConfigDict) -> Dataset:
    """``data_of`` a run that was trained; a warning says where the data is not what it was trained on.

    Raises:
        DataError: it is not there, cannot be used, or does not fit the run's model.
    """
    data = data_of(config, run.folder)
    for source in (data.train, data.test):
        for block in blocks(source, "checking the data"):
            _check(run, block.values, f"the data {config.data.name}")
    if run.known_data.fingerprint not in ("", fingerprint(data)):
        names = ("test_fraction", "seed", "held_out_by")
        now, then = (plain["data"].get(plain["data"]["name"], {}) for plain in (config.to_dict(), run.config))
        kept = now.get("held_out_by") == "content" and all(now.get(name) == then.get(name) for name in names)
        sides = "samples keep their side, held out or not" if kept else "held-out samples may be ones that it was trained on"
        warnings.warn(f"the data has changed since {run.folder} was trained, or is other data; {sides}", stacklevel=2)
    return _by_known_names(data, run.known_data.class_names)


def _by_known_names(data: Dataset, names: tuple[str, ...]) -> Dataset:
    """The data with the class indices of a run: a class is what has its name, wherever new classes come between."""
    if not names or not data.class_names or data.class_names == names:
        return data
    every = (*names, *(name for name in data.class_names if name not in names))
    index = torch.tensor([every.index(name) for name in data.class_names])
    return data.renumbered(index, every)


def file_data(run: Run, path: str, key: str, layout: str) -> Tensor:
    """The samples in a file, as the run's model takes them.

    Raises:
        DataError: the file cannot be used, or does not fit the model.
    """
    values, spec = load_array(path, key), run.model.data
    if values[0].numel() == spec.dim and len(spec.shape) > 1:
        values = arranged(values, path, shape=spec.shape, layout=layout)
    _check(run, values, path)
    return values


def _check(run: Run, values: Tensor, source: str) -> None:
    spec = run.model.data
    spec.check(values, source)
    if spec.levels is None and not values.is_floating_point():
        raise DataError(
            f"{source} holds integers, and {run.folder} was trained on continuous data: give what it was trained on, in its "
            "unit, as floating-point numbers"
        )


def class_index(run: Run, text: str | None) -> int | None:
    """The index of a class that was given by its name or its number.

    A name comes first. Where all names are numbers, a number means a name; otherwise it counts from 0.
    """
    known = run.known_data
    if text is None or text in known.class_names:
        return None if text is None else known.class_names.index(text)
    numbered = bool(known.class_names) and all(name.isdecimal() for name in known.class_names)
    if text.isdecimal() and not numbered:
        return int(text)
    names = f"it has {', '.join(known.class_names)}" if known.class_names else "its classes have numbers, from 0 on"
    names = names if run.model.classes else "its model was trained without classes"
    raise RunError(f"there is no class {text!r} in this run: {names}")


def class_title(known: KnownData, index: int) -> str:
    """The name of a class, as the command line takes it."""
    return _readable(known.class_names[index]) if index < len(known.class_names) else str(index)


def class_option(known: KnownData, index: int | None) -> str:
    """The option that gives a class again, with a blank before it; empty for none."""
    return "" if index is None else f" {shlex.quote(f'--class={class_title(known, index)}')}"


def clip_option(ends: tuple[float, ...] | None) -> str:
    """The option that clips again, with a blank before it; empty where nothing is clipped, which is None."""
    return "" if ends is None else " --clip" + ("=" + ",".join(map(str, ends)) if ends else "")


def class_list(data: Dataset) -> str:
    """The classes of data with how many samples of each are trained on, for reading; empty where there are none."""
    if data.train.classes is None:
        return ""
    counts = data.train.classes.bincount(minlength=len(data.class_names)).tolist()
    names = data.class_names or tuple(map(str, range(len(counts))))
    shown = [f"{_readable(name)} ({count})" for name, count in zip(names, counts, strict=True)]
    return f"{len(names)} classes: " + ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def _readable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
