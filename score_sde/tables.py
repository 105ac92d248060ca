"""Tables of choices: a name, and what it builds.

A config or an argument chooses by a word, and the word is looked up in a table. All tables have one form. A name leads to a
class or a function. Its options are flat arguments with defaults.

    SDES = {"vp": VPSDE, "ve": VESDE, ...}
    build(SDES, {"name": "vp", "vp": {"beta_max": 10.0}}, kind="sde")      VPSDE(beta_max=10.0)
    build(SDES, "vp", kind="sde")                                          VPSDE()
    section(SDES, "vp")                    the name, and every option of every SDE with its default, as configs have them
    section(SDES, VPSDE(beta_max=10.0))    the same, with the options of this one

An option of a dataclass may itself be chosen from a table. A ``Choice`` declares it, and its section lies in that of the class:

    weighting: Choice[Weighting] = Choice(WEIGHTINGS, "likelihood")
"""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")

Table = Mapping[str, Callable[..., Any]]
"""Name -> class or function with flat arguments."""


class OptionError(ValueError):
    """A name or an option is unknown, or a value is refused; the message says what is allowed."""


def build(table: Table, section: Mapping[str, Any] | str, *args: Any, kind: str) -> Any:
    """The object that ``section`` chooses from ``table``: called with ``args`` and with the options in ``section[name]``.

    Args:
        table: the choices.
        section: ``name``, and beside it the options of each name; a word alone is a name with its default options.
        args: arguments that are not in a section, such as the shape of the data for a network.
        kind: what is chosen, for messages.

    Raises:
        OptionError: the name or an option is unknown, or a value is refused.
    """
    section = {"name": section} if isinstance(section, str) else section
    name = section["name"]
    require_name(kind, name, table)
    options, known = section.get(name, {}), inspect.signature(table[name]).parameters
    for key, value in options.items():
        if key not in known:
            raise OptionError(f"{kind}.{name} has no option {key}{did_you_mean(key, options_of(table[name]))}")
        check_like(value, known[key].default, f"{kind}.{name}.{key}")
    try:
        return table[name](*args, **{key: as_tuples(value) for key, value in options.items()})
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        from score_sde.tensors import ran_out_of_memory  # the command line suggests names before torch is imported

        if (isinstance(error, ValueError) and type(error) not in (ValueError, OptionError)) or ran_out_of_memory(error):
            raise  # already says where it comes from
        raise OptionError(f"{kind}.{name}: {error}") from error


class Choice(Generic[T]):
    """An option of a dataclass that is chosen from a table: given by a word, by a section, or as an object.

    The dataclass always holds the object, so two that are equal compare as equal however they were given.

    Args:
        table: the choices; classes of objects that are compared by their options.
        default: what is chosen by default, a word or an object.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Power:
    ...     exponent: float = 1.0
    >>> @dataclass(frozen=True)
    ... class Loss:
    ...     weight: Choice[Power] = Choice({"power": Power}, "power")
    >>> Loss(Power(2.0)), Loss("power") == Loss()
    (Loss(weight=Power(exponent=2.0)), True)
    """

    def __init__(self, table: Table, default: T | str):
        self.table, self.default, self.name = table, default, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> T: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> T:
        if instance is None:  # a dataclass asks its class for the default
            return self._object(self.default)
        return vars(instance)[self.name]

    def __set__(self, instance: object, value: T | str | Mapping[str, Any]) -> None:
        vars(instance)[self.name] = self._object(value)

    def _object(self, value: Any) -> T:
        if isinstance(value, str | Mapping):
            return build(self.table, value, kind=self.name)
        require_instance(self.name, value)
        if isinstance(value, int | float | tuple | list | None):
            known = ", ".join(self.table)
            raise OptionError(f"{self.name} must be one of {known}, or an object of such a class, got {value!r}")
        return value


def require_name(kind: str, name: object, known: Collection[str]) -> None:
    """Raise an ``OptionError`` unless ``name`` is one of ``known``; the message has the nearest one."""
    if not isinstance(name, str) or name not in known:
        raise OptionError(f"unknown {kind} {name!r}{did_you_mean(str(name), known)}; choose one of {', '.join(known)}")


def require_instance(kind: str, thing: object) -> None:
    """Raise an ``OptionError`` if ``thing`` is a class, and an instance of it was meant."""
    if isinstance(thing, type):
        raise OptionError(f"{kind} must be an instance, {thing.__name__}(...), got the class {thing.__name__} itself")


def section(table: Table, chosen: object, *left_out: str, kind: str = "choice") -> dict[str, Any]:
    """The section of a config for a table: the name of what is chosen, and the options of every entry.

    Args:
        table: the choices.
        chosen: a name, or an object, whose options are then those of its entry. If a function of the table builds the object,
            they are those of its options that the object holds.
        left_out: arguments that are no options.
        kind: what is chosen, for messages.

    Raises:
        OptionError: the name is unknown, or nothing in the table builds such an object.
    """
    options = {key: options_of(builder, *left_out) for key, builder in table.items()}
    if isinstance(chosen, str):
        require_name(kind, chosen, table)
        return {"name": chosen, **options}
    require_instance(kind, chosen)
    for name, builder in table.items():
        made = builder if isinstance(builder, type) else inspect.signature(builder).return_annotation
        if made is not type(chosen):
            continue
        for key in options[name]:
            value, inner = getattr(chosen, key, options[name][key]), _choice(builder, key)
            options[name][key] = value if inner is None else section(inner.table, value, kind=f"{kind}.{name}.{key}")
        if made is builder or build(table, {"name": name, name: options[name]}, kind=kind) == chosen:
            return {"name": name, **options}
    known, shown = ", ".join(table), str(chosen) if len(str(chosen)) < 80 else type(chosen).__name__
    raise OptionError(f"{kind} {shown} cannot be written to config.json: give one of {known}, or add its class to the table")


def options_of(builder: Callable[..., Any], *left_out: str) -> dict[str, Any]:
    """The arguments of ``builder`` that have a default, with it; where that is a choice, its section."""
    options = {}
    for p in inspect.signature(builder).parameters.values():
        if p.default is not p.empty and p.name not in left_out:
            choice = _choice(builder, p.name)
            options[p.name] = p.default if choice is None else section(choice.table, p.default)
    return options


def _choice(builder: Callable[..., Any], option: str) -> Choice[Any] | None:
    """What declares an option of ``builder`` as a choice; None where it is none."""
    found = inspect.getattr_static(builder, option, None)
    return found if isinstance(found, Choice) else None


def check_like(value: Any, default: Any, name: str) -> None:
    """Check that ``value``, which may come from a file, has the type of ``default``, and is finite if ``default`` is.

    Raises:
        OptionError: it has another type, or is not finite; the message says what ``name`` must be.
    """
    kinds = {bool: "True or False", int: "an integer", float: "a number", str: "a word", tuple: "a tuple of numbers"}
    kind = type(default)
    if kind not in kinds:
        return
    parts = value if kind is tuple and isinstance(value, list | tuple) else [value]
    allowed = {int: int, float: int | float, tuple: int | float}.get(kind, kind)
    sound = (kind is tuple) == isinstance(value, list | tuple) and all(isinstance(part, allowed) for part in parts)
    if kind is not bool and kind is not str and sound:
        finite = kind is not float or math.isfinite(default)
        sound = not any(isinstance(part, bool) or part != part or (finite and abs(part) >= 2**63) for part in parts)
    if not sound:
        raise OptionError(f"{name} must be {kinds[kind]}, got {str(value)[:40]!r}")


def as_tuples(value: Any) -> Any:
    """``value`` with tuples in the place of lists, which JSON makes of them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


# what was meant

CALLED_ELSEWHERE = {
    # SDEs, networks and what they predict
    "vp": "vpsde",
    "ve": "vesde",
    "subvp": "subvpsde sub_vp",
    "cosine": "squaredcos_cap_v2 iddpm",
    "straight": "rectified_flow flow_matching flow linear linear_path ot optimal_transport",
    "snr": "log_snr vdm",
    "ncsnpp": "ncsn++ ddpm++",
    "dit": "transformer vit",
    "epsilon": "eps noise",
    "v": "v_prediction",
    "velocity": "flow flow_prediction",
    "flow_matching": "rectified_flow conditional_flow_matching cfm",
    "x0": "sample denoiser",
    # solvers and time grids
    "euler_maruyama": "euler em",
    "ancestral": "ddpm euler_a euler_ancestral",
    "dpm_solver": "dpm",
    "dpm_solver_pp": "dpm++ dpmpp dpm++_2m dpmpp_2m dpm_solver++",
    "sde_dpm_solver_pp": "dpm++_2m_sde dpmpp_2m_sde",
    "deis": "lms plms pndm",
    "langevin": "ula sgld unadjusted_langevin",
    "pc": "predictor_corrector",
    "ode": "probability_flow dopri5 rk45",
    "edm": "karras",
    "uniform": "linear",
    "log_snr": "exponential logsnr",
    # options
    "p": "order solver_order",
    "steps": "num_inference_steps num_steps num_train_timesteps timesteps max_steps iterations",
    "nfe": "num_inference_steps num_steps steps nsteps nstep",
    "labels": "num_train_timesteps timesteps",
    "count": "num_samples",
    "grid": "schedule timestep_spacing",
    "parameterization": "prediction_type",
    "classes": "num_classes",
    "width": "hidden_size channels",
    "depth": "num_layers",
    "blocks": "num_layers",
    "learning_rate": "lr",
    "ema_decay": "ema",
}
"""Our name -> what other libraries and papers call it."""


def nearest(word: str, known: Collection[str]) -> str | None:
    """The name in ``known`` that ``word`` probably means; None where none is near."""
    word, names = _bare(word), {_bare(name): name for name in known}
    for ours in (word, *(ours for ours, theirs in CALLED_ELSEWHERE.items() if word in theirs.split())):
        if ours in names:
            return names[ours]
    close = difflib.get_close_matches(word, names, n=1)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """', did you mean ...?' where one of ``known`` is near ``word``, else nothing."""
    meant = nearest(word, known)
    return f", did you mean {meant}?" if meant else ""


def _bare(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_").replace(" ", "_")
