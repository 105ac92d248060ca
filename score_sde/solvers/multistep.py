r"""Exponential multistep methods, of which each solver is a choice of weights.

Write lambda = log(alpha / sigma), half of the log-SNR, as in all solvers. What the network says can be turned into the data
x0 = E[x0 | x] or into the noise epsilon that it implies. In either, the linear part of the probability-flow ODE of *any* linear
SDE is solved exactly (Lu et al. 2022b, Proposition 4.1; Zhang and Chen 2023, Proposition 1):

    x_s / sigma_s = x_t / sigma_t + \int e^lambda x0 dlambda,    x_s / alpha_s = x_t / alpha_t - \int e^-lambda epsilon dlambda,

both from lambda_t to lambda_s. A multistep method replaces x0 (or epsilon) under the integral by a combination of its values
at this and earlier times, so a step costs one evaluation:

    x_s = carry x_t + sum_i w_i output_i,      carry = sigma_s / sigma_t for x0, alpha_s / alpha_t for epsilon.

A corrector does that step again when the evaluation at its end has been made, which the next step needs anyway, with that
value among the nodes. What it changes is a combination of the same outputs, and is added to the state from which the next step
starts.

p nodes give order p, with the corrector p + 1. At the start there are no earlier nodes. One step of order 1 among many leaves
a method of order 2 as it is, and so does, with a corrector, a method of order 3. Beyond, nodes are made within the first step
(``startup``): at its middle, for order 3; for order 4 at a quarter first, so that the value at the middle is good enough.

Both ends can be had cheaper. With ``lower_order_first`` no evaluations are spent on starting; with ``lower_order_final`` the
last step has one node and that before it at most two, which avoids extrapolation over a large last step in lambda, as many
grids of few steps have it. Either lowers the order that is declared, and is often the better choice below twenty evaluations.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch import Tensor

from score_sde.score import BoundScore
from score_sde.sdes import SDE
from score_sde.solvers.fixed_steps import GridSolver, History
from score_sde.solvers.level import Level
from score_sde.solvers.time_grids import TimeGrid
from score_sde.tensors import SampleNoise, total


class Node(NamedTuple):
    """What the network said at a level."""

    level: Level
    output: Tensor


@dataclass(frozen=True, eq=False)
class MultistepHistory(History):
    """The nodes of earlier steps, and of the last step the level from which it started and the weights of its nodes."""

    nodes: tuple[Node, ...] = ()
    start: Level | None = None
    weights: Sequence[float] | Tensor = ()


@dataclass(frozen=True)
class Multistep(GridSolver):
    """A multistep method: subclasses say of what, and with which weights.

    Args:
        steps, grid: as in ``GridSolver``.
        p: nodes of the predictor, 1 to 3; the corrector, where there is one, has one more.
        lower_order_first: begin with fewer nodes instead of further evaluations (which p = 3 makes).
        lower_order_final: end with fewer nodes.
    """

    steps: int = 20
    grid: str | TimeGrid = "log_snr"
    p: int = 2
    lower_order_first: bool = False
    lower_order_final: bool = False

    noise_prediction: ClassVar[bool] = False
    corrected: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if type(self.p) is not int or self.p not in (1, 2, 3):
            raise ValueError(f"p must be 1, 2 or 3, got {self.p}")

    @property
    def order(self) -> int | None:
        order = self.p + self.corrected
        order = min(order, 2 + self.corrected) if self.lower_order_first else order
        return min(order, 2) if self.lower_order_final else order

    @property
    def startup(self) -> int:
        if self.p < 3 or self.lower_order_first:
            return 0
        return 2 if self.corrected else 1

    @abstractmethod
    def weights(
        self, levels: Sequence[Level], start: Level, end: Level, sde: SDE, history: MultistepHistory
    ) -> Sequence[float] | Tensor:
        """The weights w_i of the outputs at ``levels`` in a step from ``start`` to ``end``.

        ``start`` is among the levels; ``end`` is, as the last, where the step is corrected.
        """

    def begin(self, score: BoundScore, x: Tensor, steps: int) -> MultistepHistory:
        return MultistepHistory(steps)

    def step(
        self, score: BoundScore, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, history: MultistepHistory
    ) -> tuple[Tensor, MultistepHistory]:
        sde = score.sde
        here, there = Level.at(sde, t), Level.at(sde, s)
        z, output = self.read(score, x, here, history)
        nodes = [*history.nodes, Node(here, output)]
        if self.corrected and history.start is not None:
            z = z + self._correction(nodes, sde, history.start, history)
        nodes = nodes[-(min(self.p, history.left) if self.lower_order_final else self.p) :]
        if history.start is None and self.startup:
            nodes += self._first_nodes(score, z, nodes[0], there, history)
        weights = self.weights([node.level for node in nodes], here, there, sde, history)
        moved = self.advance(z, weights, nodes, here, there, history).to(x.dtype)
        return moved, replace(history, left=history.left - 1, nodes=tuple(nodes), start=here, weights=weights)

    def read(self, score: BoundScore, x: Tensor, level: Level, history: MultistepHistory) -> tuple[Tensor, Tensor]:
        """The state and the network's output in the form in which they are combined: one evaluation."""
        gradient = score(x, level.t)
        if self.noise_prediction:
            return x, -level.sigma * gradient
        return x, (x + level.sigma**2 * gradient) / level.alpha

    def carry(self, start: Level, end: Level) -> float:
        """By what the state is multiplied in a step."""
        return end.alpha / start.alpha if self.noise_prediction else end.sigma / start.sigma

    def advance(
        self,
        z: Tensor,
        weights: Sequence[float] | Tensor,
        nodes: Sequence[Node],
        start: Level,
        end: Level,
        history: MultistepHistory,
    ) -> Tensor:
        """The state at ``end`` in x, given the weights of the nodes."""
        return self.carry(start, end) * z + combine(weights, nodes)

    def _correction(self, nodes: Sequence[Node], sde: SDE, start: Level, history: MultistepHistory) -> Tensor:
        """What the last of the nodes adds to the step before, from ``start`` to its level, which was taken without it."""
        levels = [node.level for node in nodes]
        *with_, new = self.weights(levels, start, levels[-1], sde, history)
        return combine([*(a - b for a, b in zip(with_, history.weights, strict=True)), new], nodes)

    def _first_nodes(self, score: BoundScore, z: Tensor, first: Node, end: Level, history: MultistepHistory) -> list[Node]:
        """The node in the middle of the first step."""
        found: list[Node] = []
        for fraction in (0.25, 0.5)[-self.startup :]:
            level = Level.between(score.sde, first.level, end, fraction)
            nodes = [first, *found]
            weights = self.weights([node.level for node in nodes], first.level, level, score.sde, history)
            x = self.advance(z, weights, nodes, first.level, level, history)
            found = [Node(level, self.read(score, x, level, history)[1])]
        return found


def combine(weights: Sequence[float | Tensor] | Tensor, nodes: Sequence[Node]) -> Tensor:
    """sum_i w_i output_i, each weight a number or, one for each coordinate of outputs ``(B, d)``, a tensor ``(d,)``."""
    return total(weight * node.output for weight, node in zip(weights, nodes, strict=True))
