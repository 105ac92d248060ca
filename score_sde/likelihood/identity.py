"""What identifies a score, a divergence or a dequantization, so that work which was kept is only used for the same one.

An object is identified by its class and all its attributes. Numbers, words, tensors and arrays count by their values. Any other
attribute counts by its own class and attributes in turn. A class that is neither ours nor torch's counts with the code of its
methods, with its own attributes, and with the globals that this code uses. An object that holds anything else cannot be
identified: a lambda for example, or a generator. It is refused, since what it does may have changed while its name has not.
"""

import dis
import enum
import functools
import hashlib
import re
import sys
import types
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KNOWN = ("score_sde", "torch", "numpy", "scipy", "math", "builtins", "diffusers", "abc", "typing", "functools", "dataclasses")
"""Packages whose code is identified by its name: it does not change in the middle of a run."""

PYTHON_CLASS = 1 << 9  # Py_TPFLAGS_HEAPTYPE

BOOKKEEPING = ("_abc_impl", "_is_protocol", "_is_runtime_protocol")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Unidentified(ValueError):
    """The object cannot be identified; the message says which part of it, and what to do."""


def identify(value: object, what: str) -> str:
    """The name of the class of ``value`` and 16 digits of a SHA-256 of all that it is.

    Args:
        value: a score, a divergence, a solver, ...
        what: what it is called in the message.

    Raises:
        Unidentified: a part of it cannot be identified.
    """
    reader = _Reader()
    reader.read(value, what)
    name = getattr(value, "__name__", type(value).__name__)
    return f"{name} {reader.digest.hexdigest()[:16]}"


def raw_bytes(value: Tensor) -> bytes:
    """The numbers of a tensor as bytes."""
    return value.detach().cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class _Reader:
    """A digest of objects; ``above`` are the objects within which the present one lies."""

    def __init__(self):
        self.digest = hashlib.sha256()
        self.above: list[int] = []

    def note(self, *parts: object) -> None:
        for part in parts:
            content = part if isinstance(part, bytes) else str(part).encode()
            self.digest.update(f"{len(content)}:".encode() + content)

    def read(self, value: object, where: str) -> None:
        if id(value) in self.above:  # a cycle: how far up it goes
            self.note("above", len(self.above) - self.above.index(id(value)))
            return
        self.above.append(id(value))
        self.note(_name(type(value)))
        self._content(value, where)
        self.above.pop()

    def _content(self, value: object, where: str) -> None:
        if value is None or isinstance(
            value, bool | int | float | complex | str | bytes | range | slice | PurePath | enum.Enum
        ):
            self.note(repr(value))
        elif isinstance(value, torch.dtype | torch.device | torch.layout | np.dtype):
            self.note(str(value))
        elif isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta:
                self.refuse(value, where)
            self.note(value.dtype, tuple(value.shape), raw_bytes(value))
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            if isinstance(value, np.ma.MaskedArray):
                self.refuse(value, where)
            self.note(value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
        elif isinstance(value, re.Pattern):
            self.note(repr(value.pattern), value.flags)
        elif isinstance(value, tuple | list):
            self.note(len(value))
            for i, item in enumerate(value):
                self.read(item, f"{where}[{i}]")
            self._attributes(value, where)
        elif isinstance(value, dict | types.MappingProxyType):
            self.note(len(value))
            for key, item in value.items():
                self.read(key, f"a key of {where}")
                self.read(item, f"{where}[{key!r}]")
            self._attributes(value, where)
        elif isinstance(value, set | frozenset):
            self.note(*sorted(identify(item, where) for item in value))
        elif isinstance(value, functools.partial):
            self.read((value.func, value.args, value.keywords), where)
        elif isinstance(value, types.ModuleType):
            self.note(value.__name__)
        elif isinstance(value, type):
            self._class(value, where)
        elif isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            if not _found_by_name(value):
                self.refuse(value, where)
            self._function(value, where)
        elif isinstance(value, nn.Module):
            self._module(value, where)
        else:
            if _has_hidden_state(type(value)):
                self.refuse(value, where)
            self._class(type(value), where)
            self._attributes(value, where)

    def _attributes(self, value: object, where: str, without: frozenset[str] = frozenset()) -> None:
        """Whatever an object holds, except what it has computed from the rest."""
        kind, held = type(value), dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                name = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                    held[name] = getattr(value, name)
        for name in sorted(set(held) - without):
            if not isinstance(getattr(kind, name, None), functools.cached_property):
                self.note(name)
                self.read(held[name], f"{where}.{name}")

    def _module(self, module: nn.Module, where: str) -> None:
        if isinstance(original := module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):  # torch.compile's wrapper
            self.read(original, where)
            return
        self._class(type(module), where)
        self.note("training", module.training)
        for part in ("_parameters", "_buffers", "_modules"):
            for name, value in getattr(module, part).items():
                self.note(part, name)
                self.read(value, f"{where}.{name}")
        for part in HOOKS:
            self.read(list(getattr(module, part).values()), f"a hook of {where}")
        self._attributes(module, where, frozenset(vars(nn.Module())) | {"_compiled_call_impl"})

    def _class(self, kind: type, where: str) -> None:
        """A class by its name, and one of somebody's own by its code as well."""
        self.note(_name(kind))
        if _is_known(kind):
            return
        for base in kind.__mro__:
            if _is_known(base):
                self.note(_name(base))
                continue
            for name, value in sorted(vars(base).items()):
                value = getattr(value, "__func__", value)  # of a class method or a static one
                for function in (value.fget, value.fset) if isinstance(value, property) else (value,):
                    function = function.func if isinstance(function, functools.cached_property) else function
                    if isinstance(function, types.FunctionType):
                        if not function.__code__.co_qualname.startswith("__create_fn__"):  # a dataclass's own
                            self._once(function, f"{base.__name__}.{name}")
                    elif not (name.startswith("__") or name in BOOKKEEPING or hasattr(type(function), "__get__")):
                        self.note(name)
                        self._used(function, f"{base.__name__}.{name}")

    def _once(self, function: types.FunctionType, where: str) -> None:
        if id(function) not in self.above:
            self.above.append(id(function))
            self._function(function, where)
            self.above.pop()

    def _function(self, function: Any, where: str) -> None:
        """A function by its name, and one of somebody's own by its code, its defaults and whatever else that code uses."""
        self.note(function.__module__, function.__qualname__)
        if _is_known(function):
            return
        self.read((function.__defaults__, function.__kwdefaults__), f"a default of {where}")
        for cell in function.__closure__ or ():
            if cell != types.CellType():  # an empty one
                self._used(cell.cell_contents, where)
        names = self._code(function.__code__)
        for name in sorted(names):
            value = function.__globals__.get(name)
            if name in function.__globals__:
                self.note(name)
                self._used(value, f"{name} in {where}")
            if isinstance(value, types.ModuleType) and not _is_of_package(value.__name__, (*KNOWN, *sys.stdlib_module_names)):
                self._settings(value, function.__code__, f"{name} in {where}")

    def _settings(self, module: types.ModuleType, code: types.CodeType, where: str) -> None:
        """What code takes from a module of somebody's own, ``settings.scale`` for example; its functions go by their names."""
        for part in (code, *(constant for constant in code.co_consts if isinstance(constant, types.CodeType))):
            for name in sorted(set(part.co_names) & set(vars(module))):
                value = getattr(module, name)
                if not (callable(value) or isinstance(value, types.ModuleType)):
                    self.note(name)
                    self.read(value, f"{where}.{name}")

    def _used(self, value: object, where: str) -> None:
        if isinstance(value, types.FunctionType):
            self._once(value, where)
        elif isinstance(value, type):
            if id(value) not in self.above:
                self.above.append(id(value))
                self._class(value, where)
                self.above.pop()
        else:
            self.read(value, where)

    def _code(self, code: types.CodeType) -> set[str]:
        """Note what a function does; the names that it uses."""
        names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        self.note(code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= self._code(constant)
            elif isinstance(constant, frozenset):
                self.note(*sorted(map(repr, constant)))
            else:
                self.note(repr(constant))
        return names

    def refuse(self, value: object, where: str) -> None:
        kind = "a lambda or local function" if isinstance(value, types.FunctionType) else f"a {type(value).__name__}"
        raise Unidentified(
            f"{where} is {kind}, which cannot be identified, so finished batches that are kept might be of another one: give "
            "bits_per_dim an identity='...' that you change whenever the score, its divergence or its dequantization changes, "
            "or leave keep away"
        )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _has_hidden_state(kind: type) -> bool:
    """Whether objects of a class have a state that Python does not show, as those of array.array and operator.itemgetter.

    An object of a class written in Python has room for no more than its slots, its ``__dict__`` and its weak references.
    """
    solid = next(base for base in kind.__mro__ if not base.__flags__ & PYTHON_CLASS)
    if solid is types.SimpleNamespace:
        return False
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    words = 2 + sum(1 if isinstance(names, str) else len(names) for names in slots)
    return solid is not object or kind.__basicsize__ > object.__basicsize__ + words * tuple.__itemsize__


def _is_known(value: type | types.FunctionType | types.BuiltinFunctionType) -> bool:
    return isinstance(value, types.BuiltinFunctionType) or _is_of_package(value.__module__ or "", KNOWN)


def _is_of_package(name: str, packages: tuple[str, ...]) -> bool:
    return name.split(".")[0] in packages


def _found_by_name(function: types.FunctionType | types.BuiltinFunctionType) -> bool:
    """Whether a function is what its module has under its name: no lambda, no closure, no method of an object."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType | type):
        return False
    if isinstance(function, types.BuiltinFunctionType):
        return True
    found = getattr(sys.modules.get(function.__module__), function.__qualname__, None)
    return found is function and (_is_known(function) or not function.__closure__)
