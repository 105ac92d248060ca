"""A score, and what may stand around one: counting, a condition, a class, a clip.

``Score`` is all that solvers, likelihoods and guidance know.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from score_sde.inputs import require_batch, require_float, require_states, require_time, whole
from score_sde.sdes import SDE
from score_sde.tensors import SampleNoise, batch_time, expand


@runtime_checkable
class Score(Protocol):
    """The gradient of log p_t(x) under the SDE that it carries.

    A score that wraps another keeps it in a dataclass field named ``score``; evaluations are then counted where they
    happen, in the innermost one. ``device`` and ``dtype``, where present, say where samples are to be drawn; ``event``, where
    present, is the shape of one.
    """

    sde: SDE

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, *D)`` and ``t`` ``(B,)`` to the score ``(B, *D)``; ``cond`` ``(B, ...)`` is what it is conditioned on."""
        ...


@dataclass(frozen=True, eq=False)
class ClassScore:
    """The score of one class: a score that takes classes, told the same one for all samples."""

    score: Score
    index: int

    def __post_init__(self):
        index, known = whole("a class", self.index, 0), getattr(innermost(self.score), "classes", 0)
        if known and index >= known:
            raise ValueError(f"there is no class {index}: the score has classes 0 to {known - 1}")

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.score(x, t, self._classes(x))

    def score_and_variance(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score of the class and the variance learned for it, by one evaluation."""
        return score_and_variance(self.score, x, t, self._classes(x))

    def _classes(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.index, device=x.device)


def innermost(score: Score) -> Score:
    """The score that all wrappers, each holding its own in a field ``score``, are wrapped around."""
    while dataclasses.is_dataclass(score) and hasattr(score, "score"):
        score = score.score
    return score


def require_inputs(score: Score, x: Tensor, cond: Tensor | None = None, *, name: str = "x") -> None:
    """Refuse states and conditions that cannot be meant for ``score``.

    Raises:
        ValueError: the log-SNR of the SDE is not finite or does not fall, ``x`` is no batch ``(B, *D)`` of finite
            floating-point numbers, D is not the shape of the score's data where that is known, or ``cond`` has another length.
    """
    score.sde.require_ends()
    require_states(name, x, getattr(innermost(score), "event", None))
    require_conditions(cond, len(x))


def require_conditions(cond: Tensor | None, count: int) -> None:
    """Raise a ``ValueError`` unless there is one condition for each of ``count`` samples, or none at all."""
    if isinstance(cond, Tensor) and (cond.ndim == 0 or len(cond) != count):
        raise ValueError(f"cond must hold one condition for each of {count} samples, got the shape {tuple(cond.shape)}")


class NoLearnedVariance(TypeError, ValueError):
    """The learned variance was asked of a score that has none."""


def score_and_variance(score: Score, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What ``score.score_and_variance`` returns, for any score: both ``(B, *D)``, by one evaluation.

    Raises:
        NoLearnedVariance: the score has none.
    """
    if not hasattr(score, "score_and_variance"):
        raise NoLearnedVariance(f"{type(score).__name__} has no learned variance: choose beta or beta_tilde")
    return score.score_and_variance(x, t, cond)


@dataclass
class Counter:
    """Network evaluations: how often it was called, with how many samples in all, and vector-Jacobian products of samples."""

    nfe: int = 0
    samples: int = 0
    vjps: int = 0


@dataclass(frozen=True, eq=False)
class CountedScore:
    """A score that counts its calls."""

    score: Score
    counter: Counter

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self._count(x)
        return _of_shape(x, self.score(x, t, cond))

    def score_and_variance(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The score and its learned variance, by one evaluation, which is counted."""
        self._count(x)
        return score_and_variance(self.score, x, t, cond)

    def _count(self, x: Tensor) -> None:
        self.counter.nfe += 1
        self.counter.samples += len(x)


def counted(score: Score, counter: Counter) -> Score:
    """``score`` with its innermost evaluations counted: a wrapper that calls what it wraps twice counts two."""
    if dataclasses.is_dataclass(score) and hasattr(score, "score"):
        return dataclasses.replace(score, score=counted(score.score, counter))
    return CountedScore(score, counter)


def _of_shape(x: Tensor, value: Tensor) -> Tensor:
    if value.shape != x.shape:  # it would be broadcast without a word
        raise ValueError(f"the score of states {tuple(x.shape)} must have their shape, it has {tuple(value.shape)}")
    return value


@dataclass(frozen=True, eq=False)
class BoundScore:
    """A score with its condition: called with a state and one time for all samples."""

    score: Score
    cond: Tensor | None = None

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        return _of_shape(x, self.score(x, batch_time(t, x), self.cond))

    def score_and_variance(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """The score and its learned variance, by one evaluation; a ``TypeError`` where it has none."""
        return score_and_variance(self.score, x, batch_time(t, x), self.cond)


@dataclass(frozen=True, eq=False)
class ClippedScore:
    """A score whose implied x0 = (x + sigma^2 score) / alpha is clipped to ``low`` ... ``high``, in model coordinates."""

    score: Score
    low: float | Tensor
    high: float | Tensor

    @property
    def sde(self) -> SDE:
        return self.score.sde

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self._clipped(self.score(x, t, cond), x, t)

    def score_and_variance(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The clipped score, and the learned variance as it is."""
        score, variance = score_and_variance(self.score, x, t, cond)
        return self._clipped(score, x, t), variance

    def _clipped(self, score: Tensor, x: Tensor, t: Tensor) -> Tensor:
        alpha, variance = expand(self.sde.alpha(t), x), expand(self.sde.sigma(t) ** 2, x)
        x0 = (x + variance * score) / alpha
        # what is not clipped keeps its score: (alpha x0 - x) / sigma^2 would lose its digits where sigma is small
        return (score + alpha * (x0.clamp(self.low, self.high) - x0) / variance).to(x.dtype)


def require_path(score: Score, x: Tensor, t_from: float, t_to: float) -> None:
    """Refuse what no solver can carry; values are not looked at: NaN comes out as a ``SolverError``.

    Raises:
        ValueError: the log-SNR of the SDE is not finite or does not fall, ``x`` is no batch ``(B, *D)`` of floating-point
            numbers, or of other data than the score's, or a time is outside [0, T].
    """
    score.sde.require_ends()
    require_float("x", x)
    shape = (1, *x.shape[1:]) if x.shape[:1] == (0,) else x.shape  # no samples are no error here
    require_batch("x", shape, getattr(innermost(score), "event", None))
    for name, t in (("t_from", t_from), ("t_to", t_to)):
        require_time(name, t, 0.0, score.sde.T)  # the last step of a discrete chain goes from t_min to 0


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
    inner = innermost(score)
    place = {
        "device": device or getattr(inner, "device", "cpu"),
        "dtype": dtype or getattr(inner, "dtype", torch.get_default_dtype()),
    }
    return score.sde.prior_noise(SampleNoise(seed, shape, first=first, purpose=purpose, **place).normal())


def posterior_mean(score: BoundScore, x: Tensor, t: Tensor | float) -> Tensor:
    """E[x0 | x_t = x] by Tweedie's formula: one evaluation."""
    sde = score.sde
    return (x + sde.sigma(t) ** 2 * score(x, t)) / sde.alpha(t)
