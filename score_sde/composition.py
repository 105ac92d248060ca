"""Scores made of scores: the parts of one, and the same one around other parts.

A score is a leaf, or it is made of other scores, its parts. A leaf evaluates a network or a formula. Guidance, the score of one
class and a product of experts have parts.

The parts of a score are the next scores that its attributes hold. They may lie in tuples, lists, dicts, sets, partial
functions, bound methods, modules and objects of other classes. A score may also lie in the closure of a function, in a global
that a method uses, or behind a weak reference. There it cannot be exchanged, so its evaluations would not be counted. It is
refused by name.

A class may name the attributes that hold its parts, which is then believed:

    class Guided:
        score_parts = ("inner",)          # () for a leaf, whatever it holds
"""

import contextlib
import copy
import dis
import functools
import inspect
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from score_sde.sdes import SDE

ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, np.ndarray, Tensor, SDE)
"""What holds no score."""

KNOWN = frozenset({"score_sde", "torch", "numpy", "scipy", "diffusers", *sys.stdlib_module_names})
"""Packages whose code uses no score but those that it is given."""

OPAQUE = (types.FunctionType, weakref.ref)
"""What a score may be reached through, but not exchanged in."""


class HiddenScore(TypeError):
    """A score lies where its evaluations cannot be counted; the message says where, and what to do."""


def is_score(value: object) -> bool:
    """Whether ``value`` is a score: it can be called, and its ``sde`` is one."""
    return callable(value) and not isinstance(value, type) and isinstance(getattr(value, "sde", None), SDE)


def parts(score: Any, above: frozenset[int] = frozenset()) -> tuple[Any, ...]:
    """The scores of which ``score`` is made, each once; none of a leaf.

    References back to the scores in which it lies, whose ids are ``above``, do not count.

    Raises:
        HiddenScore: it holds a score in a closure, a global, a weak reference, or under what was compiled.
    """
    return tuple(_Inside(score, above).parts.values())


def leaves(score: Any) -> tuple[Any, ...]:
    """The leaves of ``score``, each once; itself if it is one.

    Raises:
        HiddenScore: as ``parts``.
    """
    return tuple(inside.root for inside in _tree(score, frozenset(), set()) if not inside.parts)


def modules(score: Any) -> tuple[nn.Module, ...]:
    """The modules within ``score``, itself included, none of them within another.

    Raises:
        HiddenScore: as ``parts``.
    """
    found: list[nn.Module] = []
    within: set[int] = set()
    for inside in _tree(score, frozenset(), set()):
        for module in inside.modules:
            if id(module) not in within:
                found.append(module)
                within.update(map(id, module.modules()))
    return tuple(found)


class Copy(NamedTuple):
    """An object that holds a score, its copy, and the names of the attributes in which the two differ."""

    original: Any
    copy: Any
    changed: frozenset[str]


def around(score: Any, replace: Callable[[Any], Any]) -> tuple[Any, list[Copy]]:
    """``score`` with each leaf replaced by ``replace(leaf)``, once, however often it occurs.

    Whatever stands above a leaf is copied, without what it holds besides. ``score`` itself is not changed.

    Returns:
        The new score, and the copies that stand above its leaves; none where it is a leaf.

    Raises:
        HiddenScore: as ``parts``.
    """
    rebuilding = _Rebuilding(replace)
    return rebuilding.score(score, frozenset()), rebuilding.copies


def _tree(score: Any, above: frozenset[int], seen: set[int]) -> Iterator["_Inside"]:
    """What lies within a score, then the same of each of its parts, of each score once."""
    if id(score) not in seen:
        seen.add(id(score))
        inside = _Inside(score, above)
        yield inside
        for part in inside.parts.values():
            yield from _tree(part, inside.above, seen)


class _Inside:
    """What lies within a score, down to the next scores, in the order in which it is found.

    ``parts`` are those scores by their id; ``holders``, the ids of what lies between; ``modules``, those that are no scores.
    References to the scores ``above``, in which this one lies, are not its parts.
    """

    def __init__(self, score: Any, above: frozenset[int] = frozenset()):
        self.root, self.above = score, above | {id(score)}
        self.parts: dict[int, Any] = {}
        self.modules: list[nn.Module] = [score] if isinstance(score, nn.Module) else []
        self.seen = {id(score): score}
        self.held_by: dict[int, list[tuple[Any, str]]] = {}
        self.holders: set[int] = set()
        if (compiled := wrapped_module(score)) is not None:
            self.modules = [compiled]
            self._require_leaf(score, compiled)
            return
        self._walk()
        self.holders = self._holders()

    def _walk(self) -> None:
        todo = deque([self.root])
        while todo:
            holder = todo.popleft()
            for name, value in _within(holder, named=holder is self.root):
                if isinstance(value, ATOMS):
                    continue
                self.held_by.setdefault(id(value), []).append((holder, name))
                if id(value) in self.seen or id(value) in self.above:
                    continue
                self.seen[id(value)] = value
                wrapped = wrapped_module(value)
                if is_score(value) or (wrapped is not None and is_score(wrapped)):
                    self.parts[id(value)] = value
                    continue
                if isinstance(value, nn.Module):
                    self.modules.append(value)
                    if _known(type(value)) and not value._modules:  # a layer, of which there are many
                        continue
                todo.append(value)

    def _holders(self) -> set[int]:
        """The ids of all that a part is reached through, the root included; references to the scores above count."""
        found: set[int] = set()
        todo = [*self.parts, *self.above] if self.parts else []
        while todo:
            for holder, name in self.held_by.get(todo.pop(), ()):
                if isinstance(holder, OPAQUE):
                    self._refuse(holder, name)
                if getattr(holder, "_compiled_call_impl", None) is not None:
                    raise HiddenScore(
                        f"{_name(holder)} was compiled with the scores that it holds: evaluations of them cannot be counted; "
                        "compile those scores instead"
                    )
                if id(holder) not in found:
                    found.add(id(holder))
                    todo.append(id(holder))
        return found

    def _require_leaf(self, score: Any, inner: Any) -> None:
        if is_score(inner) and _Inside(inner, self.above).parts:
            raise HiddenScore(
                f"{_name(inner)} is made of other scores, and wrapped as a whole in a {_name(score)}: evaluations within it "
                "cannot be counted; wrap or compile its parts instead"
            )

    def _refuse(self, holder: Any, name: str) -> None:
        kind = f"the weak reference {name}" if isinstance(holder, weakref.ref) else f"{name}, which {_name(holder)} uses,"
        raise HiddenScore(
            f"{_name(self.root)} reaches a score through {kind} so evaluations of it cannot be counted: keep the score as an "
            "attribute and call it there, or name in score_parts the attributes that hold scores, with () if each call is to "
            "count as one evaluation"
        )


class _Rebuilding:
    """Copies of what stands above the leaves of a score, each made once."""

    def __init__(self, replace: Callable[[Any], Any]):
        self.replace = replace
        self.done: dict[int, Any] = {}
        self.copies: list[Copy] = []

    def score(self, score: Any, above: frozenset[int]) -> Any:
        if id(score) not in self.done:
            inside = _Inside(score, above)
            if inside.parts:
                self.held(score, inside)
            else:
                self.done[id(score)] = self.replace(score)
        return self.done[id(score)]

    def again(self, value: Any, inside: _Inside) -> Any:
        """What stands in place of ``value`` in the copies."""
        if id(value) in self.done:
            return self.done[id(value)]
        if id(value) in inside.parts:
            return self.score(value, inside.above)
        return self.held(value, inside) if id(value) in inside.holders else value

    def held(self, value: Any, inside: _Inside) -> Any:
        """A copy of what holds a score, around what stands in place of that."""
        again = lambda item: self.again(item, inside)
        new: Any
        if isinstance(value, tuple | set | frozenset):
            items = [again(item) for item in value]
            new = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        elif isinstance(value, types.MethodType):
            new = getattr(again(value.__self__), value.__name__)
        elif isinstance(value, types.MappingProxyType):
            new = types.MappingProxyType({key: again(item) for key, item in value.items()})
        elif isinstance(value, functools.partial):
            named = {name: again(item) for name, item in value.keywords.items()}
            new = functools.partial(again(value.func), *map(again, value.args), **named)
            vars(new).update(vars(value))
        else:
            new = copy.copy(value)
        self.done[id(value)] = new
        if isinstance(value, dict):
            new.update({key: again(item) for key, item in value.items()})
        elif isinstance(value, list | deque):
            for i, item in enumerate(value):
                new[i] = again(item)
        if not isinstance(value, types.MethodType | types.MappingProxyType):
            changed = {name: again(item) for name, item in attributes(value).items() if again(item) is not item}
            for name, item in changed.items():
                put(new, name, item)
            self.copies.append(Copy(value, new, frozenset(changed)))
        return new


def attributes(value: object) -> dict[str, object]:
    """What an object holds by name, in its ``__dict__``, in its slots, and in its class where that is somebody's own."""
    kind, held = type(value), dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        # those of a library call no others than they register
        held = {name: held[name] for name in ({"_modules"} if _known(kind) else held.keys() - _OF_EVERY_MODULE) if name in held}
    for base in kind.__mro__:
        if not _known(base):
            for name, item in vars(base).items():
                if isinstance(item, types.MemberDescriptorType):  # a slot
                    with contextlib.suppress(AttributeError):  # an empty one
                        held.setdefault(name, item.__get__(value))
                elif not (name.startswith("__") or isinstance(item, ATOMS) or hasattr(type(item), "__get__")):
                    held.setdefault(name, item)
    return held


def put(value: object, name: str, item: object) -> None:
    """Set an attribute, also of a frozen dataclass, and of a module also what is none."""
    member = inspect.getattr_static(type(value), name, None)
    if isinstance(member, types.MemberDescriptorType):
        member.__set__(value, item)
    else:
        vars(value)[name] = item


_OF_EVERY_MODULE = (frozenset(vars(nn.Module())) - {"_modules"}) | {"_compiled_call_impl"}


def _within(holder: Any, *, named: bool) -> Iterator[tuple[str, object]]:
    """What an object holds, each with what it is called there; with ``named``, what ``score_parts`` names alone."""
    names = getattr(holder, "score_parts", None) if named else None
    if names is not None:
        yield from ((name, getattr(holder, name)) for name in names)
    elif isinstance(holder, types.FunctionType):
        yield from _captured(holder)
    elif isinstance(holder, weakref.ref):
        yield "", holder()
    else:
        if isinstance(holder, dict | types.MappingProxyType):
            yield from (("an item", item) for item in holder.values())
        elif isinstance(holder, tuple | list | set | frozenset | deque):
            yield from (("an item", item) for item in holder)
        elif isinstance(holder, types.MethodType):
            yield "its object", holder.__self__
        elif isinstance(holder, functools.partial):
            yield from (("an argument", item) for item in (holder.func, *holder.args, *holder.keywords.values()))
        yield from attributes(holder).items()
        yield from (("a method", method) for method in _methods(type(holder)))


def _methods(kind: type) -> Iterator[types.FunctionType]:
    """The functions by which objects of somebody's own class may evaluate a score."""
    for base in kind.__mro__:
        if not _known(base):
            for name, item in vars(base).items():
                if isinstance(item, property):
                    function = item.fget
                elif isinstance(item, types.FunctionType):
                    function = item
                else:  # static, or cached
                    function = getattr(item, "__wrapped__", getattr(item, "func", None))
                usual = name == "__call__" or not (name.startswith("__") or isinstance(item, classmethod))
                if usual and isinstance(function, types.FunctionType):
                    yield function


def _captured(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """What a function may use besides its arguments; of global functions, those of its own package."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty one
            yield name, cell.cell_contents
    for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "a default", item
    yield from vars(function).items()
    for name in _globals(function.__code__):
        item = function.__globals__.get(name)
        if not isinstance(item, types.FunctionType) or _package(item) == _package(function):
            yield name, item


@functools.lru_cache(maxsize=1024)
def _globals(code: types.CodeType) -> tuple[str, ...]:
    """The names of the globals that code uses."""
    names = {step.argval: None for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_globals(constant))
    return tuple(names)


def wrapped_module(value: object) -> Any:
    """The module that ``torch.compile`` or a parallel wrapper calls once for each call of ``value``; else None."""
    if isinstance(value, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return value.module
    return vars(value).get("_modules", {}).get("_orig_mod") if isinstance(value, nn.Module) else None


@functools.lru_cache(maxsize=4096)
def _known(kind: type) -> bool:
    return _package(kind) in KNOWN


def _package(value: type | types.FunctionType) -> str:
    return (value.__module__ or "").split(".")[0]


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__name__)
