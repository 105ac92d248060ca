"""``tuned.json``: solvers that were chosen by measurement for a run.

There is one for each number of evaluations and for each field that a solver follows: that of a class, under guidance, clipped,
down to an end time of its own. ``about`` of an entry says for which field it was chosen, and how.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from score_sde.files import read_json, write_json
from score_sde.run.building import Config, build_solver
from score_sde.run.errors import NoTuned, TunedOtherwise, UnusableTuned
from score_sde.run.saved import load_known_data
from score_sde.solvers import SOLVERS, Solver
from score_sde.solvers.fixed_steps import GridSolver
from score_sde.solvers.tuned import Choice, Tuned, as_options
from score_sde.tables import as_tuples, check_like

TUNED = "tuned.json"
"""File of the tuned solvers in a run."""


class _Field(NamedTuple):
    """What a field depends on beside the weights: all are None for the score itself, down to t_min."""

    class_: int | None = None
    guidance: str | None = None
    clip: tuple | None = None
    t_end: float | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "_Field":
        plain = json.loads(json.dumps([about.get(name.rstrip("_")) for name in cls._fields]))
        return cls(*map(as_tuples, plain))

    def serves(self, wanted: "_Field") -> int | None:
        """How many parts of ``wanted`` a choice for this field leaves out; None where it was made for something else."""
        if any(own not in (None, other) for own, other in zip(self, wanted, strict=True)):
            return None
        return sum(own != other for own, other in zip(self, wanted, strict=True))


def save_choice(folder: Path, choice: Choice, about: Config) -> None:
    """Add a tuned solver to ``tuned.json``.

    Args:
        folder: the run's.
        choice: the solver, and what was measured.
        about: how it was chosen, and for which field: ``class``, ``guidance``, ``clip`` and ``t_end``, where there are such. It
            takes the place of one for as many evaluations of the same field.
    """
    path = folder / TUNED
    entries = _entries(path) if path.is_file() else []
    measured = {"nfe": choice.nfe, "error": choice.error, "standard": choice.standard}
    measured |= {name: list(getattr(choice, name)) for name in ("quantiles", "standard_quantiles")}
    solvers = {"solver": as_options(choice.solver, SOLVERS), "rival": as_options(choice.rival, SOLVERS)}
    entry = {**measured, **solvers, "about": dict(about)}
    key = choice.nfe, _Field.of(about)
    entries = [other for other in entries if (other["nfe"], _Field.of(other["about"])) != key] + [entry]
    write_json(path, {"choices": sorted(entries, key=lambda entry: entry["nfe"])})


def has_tuned(folder: Path, class_: int | None = None) -> bool:
    """Whether solvers were chosen for a run and this class."""
    path = Path(folder) / TUNED
    wanted = _Field(class_)
    return path.is_file() and any(_Field.of(entry["about"]).serves(wanted) is not None for entry in _entries(path))


def load_tuned(
    folder: Path,
    *,
    class_: int | None = None,
    guidance: str | None = None,
    clip: Sequence | None = None,
    t_end: float | None = None,
    step: int | None = None,
    identity: str | None = None,
) -> Tuned:
    """The solvers that were chosen for a run and a field.

    Where none was chosen for this very field, the choice for a simpler one is taken: for all classes, without guidance, not
    clipped, down to t_min. A warning says so, but for a class.

    Args:
        folder: the run's.
        class_: the class whose score the solver follows.
        guidance: what guides it, in words.
        clip: the limits between which x0 is clipped.
        t_end: the time at which sampling stops.
        step: the training step of the weights in use; a warning says where a choice was made for others.
        identity: that of the run; a warning says where a choice was made for another run.

    Raises:
        NoTuned: none were chosen.
        UnusableTuned: ``tuned.json`` is damaged.
    """
    path, wanted = Path(folder) / TUNED, _Field.of({"class": class_, "guidance": guidance, "clip": clip, "t_end": t_end})
    if not path.is_file():
        raise NoTuned(folder, f"no solver was tuned for {folder} yet")
    entries, nearest = _entries(path), {}
    for entry in entries:
        field, nfe = _Field.of(entry["about"]), entry["nfe"]
        if (missing := field.serves(wanted)) is not None:
            rank = missing, field.class_ != class_
            nearest[nfe] = min(nearest.get(nfe, (rank, entry)), (rank, entry), key=lambda pair: pair[0])
    if entries and not nearest:
        raise NoTuned(folder, f"solvers were tuned for {folder}, but only for {_listed(folder, entries)}")
    chosen = [entry for _, entry in nearest.values()]
    _warn_of_others(Path(folder), chosen, wanted, step, identity)
    try:
        return Tuned(tuple(map(_choice, chosen)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _warn_of_others(folder: Path, entries: Sequence[Config], wanted: _Field, step: int | None, identity: str | None) -> None:
    """Warn of choices for another run, for weights of another step, or for a simpler field."""

    def warn(budgets: Mapping[int, Any], what: str) -> None:
        named = ", ".join(map(str, sorted(budgets)))
        message = f"the solvers for {named} evaluations were tuned {what}"
        warnings.warn(TunedOtherwise(folder, sorted(budgets), message), stacklevel=4)

    foreign = {e["nfe"]: None for e in entries if identity and e["about"].get("run", identity) != identity}
    if foreign:
        warn(foreign, "for another run")
    stale = {e["nfe"]: e["about"]["step"] for e in entries if step is not None and e["about"].get("step", step) != step}
    if stale:
        steps = ", ".join(map(str, sorted(set(stale.values()))))
        warn(stale, f"at training step {steps}, and this is step {step}")
    for name, said in (("guidance", "without this guidance"), ("clip", "without clipping"), ("t_end", "down to t_min")):
        simpler = {e["nfe"]: None for e in entries if getattr(_Field.of(e["about"]), name) != getattr(wanted, name)}
        if simpler:
            warn(simpler, said)


def _listed(folder: Path, entries: Sequence[Config]) -> str:
    """The fields that solvers were tuned for, in words."""
    known = Path(folder) / "config.json"
    names = load_known_data(folder, accept_edited_config=True).class_names if known.is_file() else ()
    fields = sorted({_Field.of(entry["about"]) for entry in entries}, key=str)
    if all(field == (field.class_, None, None, None) for field in fields):
        numbers = [field.class_ for field in fields if field.class_ is not None]
        classes = [names[number] if number < len(names) else str(number) for number in numbers]
        return f"class {', '.join(classes)}"
    words = [
        ", ".join(f"{name.rstrip('_')} {part}" for name, part in field._asdict().items() if part is not None)
        for field in fields
    ]
    return "; ".join(words)


def _choice(entry: Config) -> Choice:
    solver, rival = (_of_grid(build_solver({"solver": entry[key]})) for key in ("solver", "rival"))
    if solver.with_budget(entry["nfe"]).steps < solver.steps:
        raise ValueError(f"{solver} takes more than {entry['nfe']} evaluations")
    names = ("quantiles", "standard_quantiles")  # older files have none
    for key in ("error", "standard"):
        check_like(entry[key], 0.0, key)
    for key in names:
        check_like(entry.get(key, ()), (), key)
    spread = [tuple(map(float, entry.get(name, ()))) for name in names]
    return Choice(int(entry["nfe"]), solver, float(entry["error"]), float(entry["standard"]), rival, *spread)


def _of_grid(solver: Solver) -> GridSolver:
    if not isinstance(solver, GridSolver):
        raise ValueError(f"{solver} has no steps of its own")
    return solver


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = read_json(path)["choices"]
        for entry in entries:
            nfe, class_ = entry["nfe"], _Field.of(entry["about"]).class_
            if type(nfe) is not int or nfe < 1 or not (class_ is None or (type(class_) is int and class_ >= 0)):
                raise TypeError(f"nfe is {nfe!r} and class {class_!r}")
        if not all(type(entry["about"].get("step", 0)) in (int, type(None)) for entry in entries):
            raise TypeError("a step is no number")
        return entries
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UnusableTuned:
    return UnusableTuned(path.parent, f"{path} is damaged or of another version: remove it, and tune again ({error})")
