r"""Runge-Kutta's pair of orders 5 and 4 with steps of its own for each sample (Dormand and Prince 1980, Table 2).

Of the embedded fourth-order solution only the error is kept,

    e = h sum_i (b_i - b*_i) k_i,    |e| = the root mean square of e / (atol + rtol max(|y|, |y_new|)) over the coordinates,

a step being accepted where |e| <= 1; the next one is h times 0.9 |e|^(-1/5), between 0.2 and 10 (Hairer et al. 1993, Section
II.4, which also has the first step). The last step ends at the end time.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from score_sde.solvers.base import Observer
from score_sde.solvers.controller import Controller
from score_sde.tensors import total

Velocity = Callable[[Tensor, Tensor], Tensor]
"""dy/dt as a function of t and y."""

_TIMES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince(
    velocity: Velocity,
    y: Tensor,
    t_from: float,
    t_to: float,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    partial: bool = False,
    observe: Observer | None = None,
) -> Tensor:
    """Integrate dy/dt = ``velocity(t, y)`` for states ``(B, n)``, ``t`` being ``(B,)``: a time of its own for each sample.

    ``observe`` is called with the time of the sample that lags behind most, and the states of all. With ``partial``, samples
    that cannot be solved end as NaN, as long as there is another one that can be.

    Raises:
        SolverError: a state stopped being finite, or the tolerance asks for steps below the precision.
    """
    given, precise = y.dtype, torch.promote_types(y.dtype, torch.float32)
    sign = 1.0 if t_to > t_from else -1.0
    control = Controller(
        "ode (rk45)",
        y,
        t_from,
        t_to,
        exponent=0.2,
        factors=(0.2, 10.0),
        shortest=1e-14,
        partial=partial,
        observe=observe,
    )

    def at(elapsed: Tensor, state: Tensor) -> Tensor:
        control.spent += 1
        return velocity(control.time(elapsed).to(precise), state)

    def size(error: Tensor, *states: Tensor) -> Tensor:
        """Root mean square of ``error`` in units of the tolerance, ``(B,)``; steps are not differentiated."""
        largest = torch.stack([state.detach().abs() for state in states]).amax(0)
        return (error.detach() / (atol + rtol * largest)).square().mean(1).sqrt().double()

    def scaled(step: Tensor, slope: Tensor) -> Tensor:
        return (sign * step).to(y.dtype)[:, None] * slope

    slope = at(control.done, y)
    control.step = _first_step(at, slope, y, control.done, control.span, size, scaled)
    for _ in control.attempts(max_steps):
        step, end = control.propose()
        stages = [(control.done, slope)]
        for fraction, weights in zip(_TIMES[1:], _STAGES[1:], strict=True):
            state = y + scaled(step, _combined(weights, stages))
            elapsed = control.done + fraction * step
            stages.append((elapsed, at(elapsed, state)))
        error = size(scaled(step, _combined(_ERROR, stages)), y, state)
        accepted = control.accepts(error)[:, None]
        y, slope = torch.where(accepted, state, y), torch.where(accepted, stages[-1][1], slope)
        control.advance(y, step, end, error, stages)
    return control.result(y).to(given)


def _combined(weights: Sequence[float], stages: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return total(weight * slope for weight, (_, slope) in zip(weights, stages, strict=True) if weight)


def _first_step(
    at: Velocity,
    slope: Tensor,
    y: Tensor,
    done: Tensor,
    span: float,
    size: Callable[..., Tensor],
    scaled: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Hairer et al. 1993, Section II.4: a first guess from |y| / |y'|, then from the change of the slope along it."""
    height, rise = size(y, y), size(slope, y)
    guess = torch.where((height < 1e-5) | (rise < 1e-5), 1e-6 * span, 0.01 * height / rise).clamp_max(span)
    bend = size(at(done + guess, y + scaled(guess, slope)) - slope, y) / guess
    steep = torch.maximum(rise, bend)
    careful = torch.where(steep <= 1e-15, (1e-3 * guess).clamp_min(1e-6 * span), (0.01 / steep) ** 0.2)
    return torch.minimum(100 * guess, careful).clamp_max(span)
