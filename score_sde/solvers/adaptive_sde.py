r"""Adaptive steps on the reverse-time SDE, chosen for each sample on its own (Jolicoeur-Martineau et al. 2021, Algorithm 1).

With F the drift of the reverse-time SDE (Song et al. 2021, Eq. 6), g its diffusion, and one increment dW of the Brownian motion
over a step from t to s, Euler-Maruyama and the stochastic improved Euler method (Roberts 2012) are

    x'  = x + F(x, t) (s - t) + g(t) dW,
    x'' = (x' + x + F(x', s) (s - t) + g(s) dW) / 2.

Their difference is the error. In units of the tolerance, with x'_prev the x' of the last accepted step,

    E = the root mean square over the coordinates of (x' - x'') / max(atol, rtol max(|x'|, |x'_prev|)),

which is the paper's scaled norm with q = 2. A step is accepted where E <= 1, and the better x'' is kept (extrapolation). The
next step is 0.9 E^(-0.9) times this one, or what is left.

The noise of rejected steps. The paper draws dW anew after a rejection. Large increments being those that are rejected, the
increments that remain are then too small. In many dimensions the norm hardly varies, but in two a fifth to a third of the steps
is rejected, and at the default tolerances the covariance of a mixture came out wrong by 17 % under VP and 52 % under VE. Here a
rejected increment is kept, as rejection sampling with memory keeps it (Rackauckas and Nie 2017, RSwM1), and the covariance was
right to its sampling error. The shorter step takes a part of it, drawn from the Brownian bridge, and the rest is used up by the
steps that follow,

    W(u) given W(v), 0 < u < v:   N(u / v W(v), u (v - u) / v).

The known increments lie on a stack, the earliest of them on top; a step is as long as the tolerance allows, but no longer than
the increment on top. Besides, the length of a step changes by a factor between 0.1 and 10, where the paper has no bounds.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.inputs import require_finite
from score_sde.score import BoundScore
from score_sde.solvers.base import Observer, Solver
from score_sde.solvers.controller import Controller
from score_sde.solvers.stochastic_heun import StochasticHeun
from score_sde.tensors import SampleNoise, expand

MAX_STEPS = 20000
FIRST = 0.01
"""Length of the first step, as a part of the whole (the paper's h_init)."""


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    """Adaptive steps on the reverse-time SDE, two evaluations a step, accepted or not.

    Each sample has a time and steps of its own, so that it does not depend on its batch. The evaluations are those of the
    sample with most steps; the states of a trajectory belong to different times, the slowest of which is reported.

    Args:
        rtol: relative tolerance, the paper's eps_rel, from 0.01 (accurate) to 0.1 (fast).
        atol: absolute tolerance in model coordinates, the paper's eps_abs: one of 256 levels of the data, 0.0078 in [-1, 1].
        safety: factor on the next step, 0 < safety <= 1, the paper's theta.
        exponent: power of the error that sets the next step, between 0.5 and 1, the paper's r.
    """

    rtol: float = 0.02
    atol: float = 0.0078
    safety: float = 0.9
    exponent: float = 0.9

    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        require_finite({"rtol": self.rtol, "atol": self.atol})
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, got {self.rtol} and {self.atol}")
        if not 0 < self.safety <= 1:
            raise ValueError(f"safety must lie between 0 and 1, got {self.safety}")
        if not 0.5 <= self.exponent <= 1:
            raise ValueError(f"exponent must lie between 0.5 and 1, got {self.exponent}")

    def with_budget(self, nfe: int) -> StochasticHeun:
        """A method with a tolerance has no budget: ``StochasticHeun`` stands in for it, which averages two stages as well."""
        return StochasticHeun().with_budget(nfe)

    def follow(
        self, score: BoundScore, x: Tensor, t_from: float, t_to: float, noise: SampleNoise, observe: Observer | None
    ) -> Tensor:
        control = Controller(
            type(self).__name__,
            x,
            t_from,
            t_to,
            exponent=self.exponent,
            safety=self.safety,
            factors=(0.1, 10.0),
            shortest=1e-12,
            observe=observe,
        )
        control.step, previous, known = torch.full_like(control.done, FIRST * control.span), x, Increments(x)
        for _ in control.attempts(MAX_STEPS):
            start, (_, end) = control.done, control.propose()
            end, increment = known.next(start, end, noise.normal())
            length = end - start
            low, high = self._stages(score, x, control.time(start), control.time(end), length, increment)
            control.spent += 2
            tolerance = (self.rtol * torch.maximum(low.abs(), previous.abs())).clamp_min(self.atol)
            error = ((high - low) / tolerance).flatten(1).square().mean(1).sqrt().double()
            accepted = control.accepts(error)
            x, previous = (torch.where(expand(accepted, x), new, old) for new, old in ((high, x), (low, previous)))
            known.drop(accepted)
            known.trim(int(control.advance(x, length, end, error, [(start, low), (end, high)], known.depth.amax())))
        return control.result(x)

    @staticmethod
    def _stages(score: BoundScore, x: Tensor, t: Tensor, s: Tensor, length: Tensor, increment: Tensor) -> tuple[Tensor, Tensor]:
        """x' and x'' of a step from ``t`` to ``s``, ``(B,)``, with the increment of the Brownian motion ``(B, *D)``."""
        sde, precise = score.sde, torch.promote_types(x.dtype, torch.float32)
        t, s, length = t.to(precise), s.to(precise), expand(length, x).to(x.dtype)

        def move(state: Tensor, time: Tensor) -> Tensor:
            drift = sde.reverse_drift(state, time, score(state, time))
            return (x - length * drift + expand(sde.diffusion(time), x) * increment).to(x.dtype)

        low = move(x, t)
        return low, (low + move(low, s)) / 2


class Increments:
    """The increments of each sample's Brownian motion that are known already, beginning where the sample is: a stack.

    Entry k of sample i, ``k < depth[i]``, lasts until ``ends[k, i]`` and is ``values[k, i]``; the one on top is next in time.
    """

    def __init__(self, x: Tensor):
        self.rows = torch.arange(len(x), device=x.device)
        self.depth = torch.zeros_like(self.rows)
        self.ends, self.values = torch.zeros(0, len(x), dtype=torch.float64, device=x.device), x.new_zeros(0, *x.shape)

    def next(self, start: Tensor, end: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The end and the increment of the next step of each sample, from ``start`` and at most to ``end``, ``(B,)``.

        They are on top of the stack afterwards. Of ``z``, standard normal ``(B, *D)``, each sample uses its own or nothing.
        """
        self.ends, self.values = torch.cat([self.ends, end[None]]), torch.cat([self.values, z[None]])
        top = (self.depth - 1).clamp_min(0), self.rows
        known_end, known = self.ends[top], self.values[top]
        empty, longer = self.depth == 0, (self.depth > 0) & (known_end > end)
        u, v = end - start, torch.where(longer, known_end - start, 1.0)
        share, spread = torch.where(longer, u / v, 0.0), torch.where(longer, u * (v - u) / v, u).sqrt()
        drawn = expand(share, z).to(z.dtype) * known + expand(spread, z).to(z.dtype) * z
        self._put(longer, known_end, known - drawn)  # what the shorter step leaves
        self.depth = self.depth + (empty | longer)
        self._put(empty | longer, end, drawn)
        top = self.depth - 1, self.rows
        return self.ends[top], self.values[top]

    def _put(self, where: Tensor, end: Tensor, value: Tensor) -> None:
        """Replace the top ``where`` asked for."""
        top = (self.depth - 1).clamp_min(0), self.rows
        self.ends[top] = torch.where(where, end, self.ends[top])
        self.values[top] = torch.where(expand(where, value), value, self.values[top])

    def drop(self, used: Tensor) -> None:
        """Take the top away where it was ``used``."""
        self.depth = self.depth - used.long()

    def trim(self, depth: int) -> None:
        """Forget what lies above the deepest stack."""
        self.ends, self.values = self.ends[:depth], self.values[:depth]
