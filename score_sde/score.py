"""A score, what may stand around one, and what is asked of one.

``Score`` is all that solvers, likelihoods and guidance know. Scores may be made of scores, as ``composition`` has it.
Evaluations are counted at the leaves, whatever stands above them.

Device, dtype, shape of a sample, description and moments of the data, number of classes: a score may state them as attributes.
If it does not, its parts are asked. Parts that disagree are refused where one answer is needed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from score_sde.composition import HiddenScore, around, attributes, modules, parts, put, wrapped_module
from score_sde.data import DataSpec, Moments
from score_sde.inputs import require_batch, require_float, require_states, require_time, whole
from score_sde.sdes import SDE
from score_sde.tensors import Condition, SampleNoise, batch_time, expand

Answer = TypeVar("Answer")

Ends = tuple[Tensor, Tensor]
"""log beta_tilde and log beta of a step, ``()`` or ``(B,)``: what a learned variance is told."""


@runtime_checkable
class Score(Protocol):
    """The gradient of log p_t(x) under the SDE that it carries.

    It may state more as attributes: ``device`` and ``dtype``, where samples are drawn; ``event``, the shape of one; ``data``, a
    ``DataSpec``; ``moments`` and ``sigma_data`` of the data; ``classes``, their number; and ``score_parts``, the names of the
    attributes that hold the scores of which it is made.
    """

    @property
    def sde(self) -> SDE:
        """The forward SDE."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """``x`` ``(B, *D)`` and ``t`` ``(B,)`` to the score ``(B, *D)``.

        ``cond`` is what it is conditioned on: a tensor ``(B, ...)``, or several by their names where the score takes such.
        """
        ...


class NoLearnedVariance(TypeError, ValueError):
    """The learned variance was asked of a score that has none."""


def score_and_variance(score: Score, x: Tensor, t: Tensor, ends: Ends, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
    """What ``score.score_and_variance`` returns, for any score: the score and log Sigma, ``(B, *D)``, by one evaluation.

    Raises:
        NoLearnedVariance: the score has none.
    """
    evaluate = getattr(score, "score_and_variance", None)
    if evaluate is None:
        named = type(score._leaf if isinstance(score, _CountedLeaf) else score).__name__
        raise NoLearnedVariance(f"{named} has no learned variance: choose beta or beta_tilde")
    return evaluate(x, t, ends, cond)


# what stands around a score


@dataclass(frozen=True, eq=False)
class WrappedScore:
    """A score around another one: it may change what that is told, ``told``, and what that says, ``changed``."""

    score: Score

    score_parts: ClassVar[tuple[str, ...]] = ("score",)

    @property
    def sde(self) -> SDE:
        """The SDE of the score within."""
        return self.score.sde

    def __call__(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        return self.changed(self.score(x, *self.told(x, t, cond)), x, t)

    def score_and_variance(self, x: Tensor, t: Tensor, ends: Ends, cond: Condition | None = None) -> tuple[Tensor, Tensor]:
        """The score, and log Sigma of the step with these ``ends`` as it is within, by one evaluation."""
        t_within, cond = self.told(x, t, cond)
        score, log_variance = score_and_variance(self.score, x, t_within, ends, cond)
        return self.changed(score, x, t), log_variance

    def told(self, x: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        """The time and the condition for the score within."""
        return t, cond

    def changed(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What becomes of the score within, ``(B, *D)``."""
        return score


@dataclass(frozen=True, eq=False)
class BoundScore(WrappedScore):
    """A score with its condition: called with a state and one time for all samples, or one for each."""

    cond: Condition | None = None

    def told(self, x: Tensor, t: Tensor | float, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        return batch_time(t, x), self.cond

    def changed(self, score: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        if score.shape != x.shape:  # it would be broadcast without a word
            raise ValueError(f"the score of states {tuple(x.shape)} must have their shape, it has {tuple(score.shape)}")
        return score


@dataclass(frozen=True, eq=False)
class ClippedScore(WrappedScore):
    """A score whose implied x0 = (x + sigma^2 score) / alpha is clipped to ``low`` ... ``high``, in model coordinates."""

    low: float | Tensor
    high: float | Tensor

    def changed(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha, variance = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t) ** 2, x)
        x0 = (x + variance * score) / alpha
        # what is not clipped keeps its score: (alpha x0 - x) / sigma^2 would lose its digits where sigma is small
        limits: Any = self.low, self.high  # torch asks for two numbers or two tensors
        return (score + alpha * (x0.clamp(*limits) - x0) / variance).to(x.dtype)


@dataclass(frozen=True, eq=False)
class ClassScore(WrappedScore):
    """The score of one class: a score that takes classes, told the same one for all samples."""

    index: int

    def __post_init__(self):
        index, known = whole("a class", self.index, 0), classes_of(self.score)
        if known and index >= known:
            raise ValueError(f"there is no class {index}: the score has classes 0 to {known - 1}")

    def told(self, x: Tensor, t: Tensor, cond: Condition | None) -> tuple[Tensor, Condition | None]:
        return t, torch.full((len(x),), self.index, device=x.device)


# counting


@dataclass
class Counter:
    """Network evaluations: how often it was called, with how many samples in all, and vector-Jacobian products of samples."""

    nfe: int = 0
    samples: int = 0
    vjps: int = 0


EVALUATIONS = ("forward", "_wrapped_call_impl", "score_and_variance")
"""Methods by which a leaf may be evaluated without a call of itself."""


class _CountedLeaf:
    """A leaf that counts its calls, and in all else is the leaf."""

    score_parts = ("_leaf",)

    def __init__(self, leaf: Score, counter: Counter):
        vars(self).update(_leaf=leaf, _counter=counter)

    def __call__(self, *given: Any, **named: Any) -> Tensor:  # a leaf within a wrapper may take more than a score must
        self._count(*given, *named.values())
        return self._leaf(*given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as those by which Python copies an object
            raise AttributeError(name)
        value = getattr(self._leaf, name)
        return functools.partial(self._evaluated, value) if name in EVALUATIONS else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._leaf, name, value)

    def _evaluated(self, method: Callable, *given: Any, **named: Any) -> Any:
        self._count(*given, *named.values())
        return method(*given, **named)

    def _count(self, *given: Any) -> None:
        self._counter.nfe += 1
        self._counter.samples += next(len(value) for value in given if isinstance(value, Tensor))


@contextmanager
def counting(score: Score) -> Iterator[tuple[Score, Counter]]:
    """The same score with its evaluations counted: a context manager that gives it and its counter.

    An evaluation is a call of a leaf: a wrapper that calls the score within twice makes two. What stands above the leaves is
    copied; what it assigns to itself in the meantime is its own again at the end.

    Raises:
        HiddenScore: the parts of ``score`` cannot be found, or no evaluation of them was counted.
    """
    counter = Counter()
    counted, copies = around(score, lambda leaf: _CountedLeaf(leaf, counter))
    try:
        yield counted, counter
    finally:
        for original, copy, changed in copies:
            before = attributes(original)
            for name, value in attributes(copy).items():
                if name not in changed and before.get(name) is not value:
                    put(original, name, value)
    if copies and not counter.nfe:
        held = ", ".join(type(part).__name__ for part in parts(score))
        raise HiddenScore(
            f"{type(score).__name__} holds other scores ({held}), but no evaluation of them was counted: it must call them as "
            "its attributes, or say with score_parts = () that it is evaluated without them"
        )


# what is asked of a score


def device_of(score: Score) -> torch.device:
    """Where a score is evaluated: where it says, or its parts say, or where their weights are; else on the CPU."""
    stated = _agreed(score, "device", torch.device | str, lambda weight: weight.device, alike=_with_index)
    return torch.device("cpu") if stated is None else stated


def dtype_of(score: Score) -> torch.dtype:
    """In what dtype a score takes states: the one it states, or its parts, or that of their weights, at least float32.

    Where nobody knows, torch's default.
    """
    stated = _agreed(score, "dtype", torch.dtype, lambda weight: torch.promote_types(weight.dtype, torch.float32))
    return torch.get_default_dtype() if stated is None else stated


def event_of(score: Score) -> tuple[int, ...] | None:
    """The shape of one sample, D; None where it is not known."""
    event = _agreed(score, "event", tuple)
    return None if event is None else tuple(event)


def data_of(score: Score) -> DataSpec | None:
    """The description of the data; None where it is not known."""
    return _agreed(score, "data", DataSpec)


def classes_of(score: Score) -> int:
    """The number of classes that a score takes; 0 for one that takes none."""
    return _agreed(score, "classes", int, ignored=0) or 0


def moments_of(score: Score) -> Moments | None:
    """The moments of the data; None unless all leaves of the score have the same."""
    answers = [answer for _, answer in _answers(score, "moments", Moments)]
    return answers[0] if answers and all(answer is answers[0] for answer in answers) else None


def sigma_data_of(score: Score) -> float:
    """The root mean square of the data; 0.5 unless all leaves of the score have the same."""
    answers = {None if answer is None else float(answer) for _, answer in _answers(score, "sigma_data", Real)}
    shared = answers.pop() if len(answers) == 1 else None
    return 0.5 if shared is None else shared


# checks


def require_score(score: object) -> None:
    """Raise a ``ValueError`` unless ``score`` carries an SDE, and is no class."""
    if isinstance(score, type) or not hasattr(score, "sde"):
        name = f"the class {score.__name__}" if isinstance(score, type) else f"a {type(score).__name__}"
        raise ValueError(f"a score carries its SDE, as ScoreModel(network, sde, data) does; {name} is no score")


def require_inputs(score: Score, x: Tensor, cond: Condition | None = None, *, name: str = "x") -> None:
    """Refuse states and conditions that cannot be meant for ``score``.

    Raises:
        ValueError: the log-SNR of the SDE is not finite or does not fall, ``x`` is no batch ``(B, *D)`` of finite
            floating-point numbers, D is not the shape of the score's data where that is known, or ``cond`` has another length.
    """
    require_score(score)
    score.sde.require_ends()
    require_states(name, x, event_of(score))
    require_conditions(cond, len(x))


def require_conditions(cond: Condition | None, count: int) -> None:
    """Raise a ``ValueError`` unless there is one condition for each of ``count`` samples, or none at all."""
    for told in cond.values() if isinstance(cond, Mapping) else (cond,):
        if isinstance(told, Tensor) and (told.ndim == 0 or len(told) != count):
            raise ValueError(f"cond must hold one condition for each of {count} samples, got the shape {tuple(told.shape)}")


def require_path(score: Score, x: Tensor, t_from: float, t_to: float) -> None:
    """Refuse what no solver can carry; values are not looked at: NaN comes out as a ``SolverError``.

    Raises:
        ValueError: ``x`` is no batch ``(B, *D)`` of floating-point numbers, or of other data than the score's, or a time is
            outside [0, T].
    """
    require_float("x", x)
    shape = (1, *x.shape[1:]) if x.shape[:1] == (0,) else x.shape  # no samples are no error here
    require_batch("x", shape, event_of(score))
    for name, t in (("t_from", t_from), ("t_to", t_to)):
        require_time(name, t, 0.0, score.sde.T)  # the last step of a discrete chain goes from t_min to 0


# what is made with a score


def draw_latents(
    score: Score,
    shape: Sequence[int],
    *,
    seed: int = 0,
    first: int = 0,
    purpose: str = "prior",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """States at T ``(B, *D)`` from the prior, by default where the score is: sample i depends on ``seed`` and ``first + i``."""
    place = {"device": device or device_of(score), "dtype": dtype or dtype_of(score)}
    return score.sde.prior_noise(SampleNoise(seed, shape, first=first, purpose=purpose, **place).normal())


def posterior_mean(score: BoundScore, x: Tensor, t: Tensor | float) -> Tensor:
    """E[x0 | x_t = x] by Tweedie's formula: one evaluation."""
    sde = score.sde
    return (x + sde.sigma(t) ** 2 * score(x, batch_time(t, x))) / sde.alpha(t)


def _answers(
    score: Any, name: str, kind: Any, of_weights: Callable[[Tensor], Any] | None = None, above: frozenset[int] = frozenset()
) -> list[tuple[Any, Any]]:
    """Who says what of ``name``: the score itself, else each of its parts; None of a leaf that does not know."""
    if isinstance(score, _CountedLeaf):
        score = score._leaf
    for speaker in (score, wrapped_module(score)):
        stated: Any = getattr(speaker, name, None)
        if isinstance(stated, kind):
            return [(speaker, torch.device(stated) if name == "device" else stated)]  # it may be a word
    within = parts(score, above)
    if within:
        above = above | {id(score)}
        return [answer for part in within for answer in _answers(part, name, kind, of_weights, above)]
    if of_weights is None:
        return [(score, None)]
    weights = (weight for module in modules(score) for weight in (*module.parameters(), *module.buffers()))
    return [(score, next((of_weights(weight) for weight in weights if weight.is_floating_point()), None))]


def _agreed(
    score: Score,
    name: str,
    kind: type[Answer] | Any,
    of_weights: Callable[[Tensor], Answer] | None = None,
    ignored: object = None,
    alike: Callable[[Answer], Any] = lambda answer: answer,
) -> Answer | None:
    """What all who know say of ``name``; None where nobody does. Answers agree where ``alike`` makes the same of them.

    Raises:
        ValueError: they disagree.
    """
    answers = [(who, answer) for who, answer in _answers(score, name, kind, of_weights) if answer not in (None, ignored)]
    for who, answer in answers[1:]:
        first, said = answers[0]
        if alike(answer) != alike(said):
            raise ValueError(
                f"the scores within {type(score).__name__} disagree about {name}: {type(first).__name__} says {said}, "
                f"{type(who).__name__} says {answer}; make them agree, or give {type(score).__name__} an attribute {name}"
            )
    return answers[0][1] if answers else None


def _with_index(device: torch.device) -> tuple[str, int]:
    """A device by its type and number. Without a number, it is the current one of its type."""
    current = torch.cuda.current_device() if device.type == "cuda" and torch.cuda.is_initialized() else 0
    return device.type, current if device.index is None else device.index
