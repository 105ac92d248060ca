"""Scores around others: what they are asked, what they break, and the score as a gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Around:
    """A score around another."""

    inner: object

    @property
    def sde(self):
        return self.inner.sde

    def __call__(self, x, t, cond=None):
        return self.inner(x, t, cond)


@dataclass(frozen=True, eq=False)
class ScaledScore(Around):
    """A score times a factor: a crude model of a network's error."""

    factor: float

    def __call__(self, x, t, cond=None):
        return self.factor * self.inner(x, t, cond)


@dataclass(frozen=True, eq=False)
class Recorder(Around):
    """A score that keeps the times it was asked for, one per call."""

    times: list

    def __call__(self, x, t, cond=None):
        assert t.shape == (len(x),)
        self.times.append(t[0].item())
        return self.inner(x, t, cond)


@dataclass(frozen=True, eq=False)
class BrokenScore(Around):
    """A score that is NaN at times ``broken`` says."""

    broken: Callable

    def __call__(self, x, t, cond=None):
        return self.inner(x, t, cond) * torch.where(self.broken(t[0]), math.nan, 1.0)


@dataclass(frozen=True, eq=False)
class OwnPrecision(Around):
    """A score that is not touched by autocast."""

    def __call__(self, x, t, cond=None):
        with torch.autocast("cpu", enabled=False):
            return self.inner(x, t, cond)


def autograd_score(score, x, t):
    """The gradient of ``score.log_prob``: the score, without the formula of the score."""
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score.log_prob(x, t).sum(), x)
    return gradient
