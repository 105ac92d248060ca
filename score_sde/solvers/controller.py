r"""Steps of its own for each sample of a batch: when, how long, accepted or not, and what cannot be solved.

A method with a tolerance tries a step and measures its error E in units of the tolerance. The step is accepted where E <= 1.
The next one is this one times

    safety E^(-exponent),

between a least and a largest factor (Hairer et al. 1993, Section II.4). Whatever one sample asks for, its neighbours do not
notice: a result is the same in any batch.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from score_sde.solvers.base import Observer, SolverError
from score_sde.solvers.guard import non_finite
from score_sde.tensors import expand


class Controller:
    """The times and the steps of a batch.

    ``done`` ``(B,)`` is the time that lies behind each sample, in float64. ``step`` ``(B,)`` is how long the next step is to
    be; the method sets the first. The method adds its evaluations to ``spent``.

    Args:
        name: the method, for messages.
        x: states ``(B, *D)``.
        t_from, t_to: the ends of the path, which may rise or fall.
        exponent, safety: of the next step.
        factors: between which the next step is as long as this one.
        shortest: the length at which a step that is not accepted is given up, as a part of the whole path.
        partial: let samples that cannot be solved end as NaN, as long as there is another one that can be.
        observe: called with the time of the sample that lags behind most, and the states of all.
    """

    def __init__(
        self,
        name: str,
        x: Tensor,
        t_from: float,
        t_to: float,
        *,
        exponent: float,
        factors: tuple[float, float],
        shortest: float,
        safety: float = 0.9,
        partial: bool = False,
        observe: Observer | None = None,
    ):
        self.name, self.t_from, self.t_to = name, t_from, t_to
        self.exponent, self.safety, self.factors = exponent, safety, factors
        self.shortest, self.partial, self.observe = shortest, partial, observe
        self.sign, self.span = 1.0 if t_to > t_from else -1.0, abs(t_to - t_from)
        self.done = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.step = torch.zeros_like(self.done)
        self.alive = torch.ones_like(self.done, dtype=torch.bool)
        self.spent, self.behind = 0, 0.0

    def time(self, elapsed: Tensor) -> Tensor:
        """The times ``(B,)`` at which ``elapsed`` ``(B,)`` lies behind."""
        first, last = min(self.t_from, self.t_to), max(self.t_from, self.t_to)
        return (self.t_from + self.sign * elapsed).clamp(first, last)  # the sum may round to a time beyond the end

    def attempts(self, most: int) -> Iterator[int]:
        """Count the steps, until all samples have arrived, or to ``most``."""
        for number in range(1, most + 1):
            yield number
            if self.behind == self.span:
                return

    def propose(self) -> tuple[Tensor, Tensor]:
        """The lengths of the next steps and the time behind at their ends, both ``(B,)``; 0 for samples that have arrived."""
        left = self.span - self.done
        length = torch.minimum(self.step, left)
        return length, torch.where(length >= left, self.span, self.done + length)

    def accepts(self, error: Tensor) -> Tensor:
        """Where a step of this ``error`` ``(B,)`` is accepted."""
        return self.alive & (error <= 1)

    def advance(
        self,
        x: Tensor,
        length: Tensor,
        end: Tensor,
        error: Tensor,
        stages: Sequence[tuple[Tensor, Tensor]],
        wanted: Tensor | None = None,
    ) -> float:
        """Go on to the ends of the steps that were accepted, and choose the next ones.

        Args:
            x: the states ``(B, *D)`` after the step, those of steps not accepted as they were.
            length, end: the lengths ``(B,)`` of the steps and the time behind at their ends.
            error: the errors ``(B,)``.
            stages: the time behind ``(B,)`` and the value ``(B, *D)`` of each evaluation, to the last that was spent.
            wanted: a number on the device, brought to the host together with what is looked at here.

        Returns:
            ``wanted`` as a number, 0 where there is none.

        Raises:
            SolverError: a state is not finite, or a step is too short.
        """
        accepted, sound = self.accepts(error), error.isfinite()
        reached = torch.where(accepted, end, self.done)
        lost = self.alive & (~sound | (~accepted & (length <= self.shortest * self.span)))
        self.alive = self.alive & ~lost
        lagging = torch.where(self.alive | lost, reached, self.span).amin()
        looked_at = [lagging, lost.any(), self.alive.any(), lagging if wanted is None else wanted]
        behind, failed, hopeful, number = torch.stack([value.double() for value in looked_at]).tolist()
        before, self.behind = self.behind, behind
        if failed and not (self.partial and hopeful):
            if sound[lost].all():
                raise self._gave_up()
            self._raise_non_finite((lost & ~sound).nonzero()[0], stages)
        self.done = torch.where(self.alive, reached, self.span)  # who is lost asks for no more steps
        factor = (self.safety * error.clamp_min(1e-10) ** -self.exponent).clamp(*self.factors)
        self.step = torch.where(self.alive, length * factor, 0.0)
        if self.observe and behind > before:
            self.observe(self.t_to if behind == self.span else self.t_from + self.sign * behind, x)
        return number if wanted is not None else 0.0

    def result(self, x: Tensor) -> Tensor:
        """The states ``(B, *D)`` at the end, NaN for those that were lost.

        Raises:
            SolverError: some samples have not arrived, and with ``partial``, none has.
        """
        arrived = self.alive & (self.done == self.span)
        if self.behind == self.span or (self.partial and arrived.any()):
            return torch.where(expand(arrived, x), x, math.nan)
        raise self._gave_up()

    def _raise_non_finite(self, sample: Tensor, stages: Sequence[tuple[Tensor, Tensor]]) -> None:
        finite = [bool(value[sample].isfinite().all()) for _, value in stages]
        first = finite.index(False) if False in finite else len(stages) - 1
        elapsed = stages[first][0]
        at = self.time(torch.where(elapsed.isnan(), self.done, elapsed))[sample]
        raise SolverError(non_finite(self.name, float(at), f"evaluation {self.spent - len(stages) + 1 + first}"))

    def _gave_up(self) -> SolverError:
        return SolverError(
            f"{self.name} gave up at t = {self.t_from + self.sign * self.behind:.3g} after {self.spent} evaluations: the "
            "tolerance asks for more than the precision or the smoothness of the score allows; use a larger rtol and atol, "
            "or float64"
        )
