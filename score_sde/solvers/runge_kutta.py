r"""Runge-Kutta's pair of orders 5 and 4 with steps of its own for each sample (Dormand and Prince 1980, Table 2).

Whatever one sample asks for, its neighbours do not notice: a result is the same in any batch. Of the embedded fourth-order
solution only the error is kept,

    e = h sum_i (b_i - b*_i) k_i,    |e| = the root mean square of e / (atol + rtol max(|y|, |y_new|)) over the coordinates,

a step being accepted where |e| <= 1; the next one is h times 0.9 |e|^(-1/5), between 0.2 and 10 (Hairer et al. 1993, Section
II.4, which also has the first step). The last step ends at the end time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.solvers.base import Observer, SolverError
from score_sde.solvers.guard import non_finite

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
    velocity: Callable[[Tensor, Tensor], Tensor],
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
    given, name, sign = y.dtype, "ode (rk45)", 1.0 if t_to > t_from else -1.0
    precise = torch.promote_types(y.dtype, torch.float32)
    done = torch.zeros(len(y), dtype=torch.float64, device=y.device)  # time behind each sample
    span, first, last = abs(t_to - t_from), min(t_from, t_to), max(t_from, t_to)

    def time(elapsed: Tensor) -> Tensor:
        return (t_from + sign * elapsed).clamp(first, last)  # the sum may round to a time beyond the end

    def at(elapsed: Tensor, state: Tensor) -> Tensor:
        return velocity(time(elapsed).to(precise), state)

    def size(error: Tensor, *states: Tensor) -> Tensor:
        """Root mean square of ``error`` in units of the tolerance, ``(B,)``; steps are not differentiated."""
        largest = torch.stack([state.detach().abs() for state in states]).amax(0)
        return (error.detach() / (atol + rtol * largest)).square().mean(1).sqrt().double()

    def scaled(step: Tensor, slope: Tensor) -> Tensor:
        return (sign * step).to(y.dtype)[:, None] * slope

    slope = at(done, y)
    step = _first_step(at, slope, y, done, span, size, scaled)
    slowest, alive, behind = 0.0, torch.ones_like(done, dtype=torch.bool), 0.0
    for number in range(1, max_steps + 1):
        calls = 2 + 6 * number
        step = torch.minimum(step, span - done)  # 0 for a sample that has arrived
        slopes = [slope]
        for fraction, weights in zip(_TIMES[1:], _STAGES[1:], strict=True):
            state = y + scaled(step, sum(w * k for w, k in zip(weights, slopes, strict=True) if w))
            slopes.append(at(done + fraction * step, state))
        error = size(scaled(step, sum(w * k for w, k in zip(_ERROR, slopes, strict=True) if w)), y, state)
        accepted = alive & (error <= 1)
        y = torch.where(accepted[:, None], state, y)
        slope = torch.where(accepted[:, None], slopes[-1], slope)
        reached = torch.where(accepted, torch.where(step >= span - done, span, done + step), done)
        sound, stuck = error.isfinite(), ~accepted & (step <= 1e-14 * span)
        lost = alive & (~sound | stuck)
        alive = alive & ~lost
        behind, failed, hopeful = torch.stack(
            [torch.where(alive | lost, reached, span).amin(), lost.any().double(), alive.any().double()]
        ).tolist()
        if failed and not (partial and hopeful):
            if sound[lost].all():
                break
            sample = (lost & ~sound).nonzero()[0]
            stage = next((i for i, k in enumerate(slopes) if not k[sample].isfinite().all()), len(slopes) - 1)
            at_stage = time(done + _TIMES[stage] * step.nan_to_num(0.0))[sample]
            raise SolverError(non_finite(name, float(at_stage), f"evaluation {calls - 6 + stage}"))
        done = torch.where(alive, reached, span)  # who is lost asks for no more steps
        step = torch.where(alive, step * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 10.0), 0.0)
        if observe and behind > slowest:
            slowest = behind
            observe(t_to if behind == span else t_from + sign * behind, y)
        if behind == span:
            break
    arrived = alive & (done == span)
    if behind == span or (partial and arrived.any()):
        return torch.where(arrived[:, None], y, math.nan).to(given)
    raise SolverError(
        f"{name} gave up at t = {t_from + sign * behind:.3g} after {calls} evaluations: the tolerance asks for more than the "
        "precision or the smoothness of the score allows; use a larger rtol and atol, or float64"
    )


def _first_step(at, slope: Tensor, y: Tensor, done: Tensor, span: float, size, scaled) -> Tensor:
    """Hairer et al. 1993, Section II.4: a first guess from |y| / |y'|, then from the change of the slope along it."""
    height, rise = size(y, y), size(slope, y)
    guess = torch.where((height < 1e-5) | (rise < 1e-5), 1e-6 * span, 0.01 * height / rise).clamp_max(span)
    bend = size(at(done + guess, y + scaled(guess, slope)) - slope, y) / guess
    steep = torch.maximum(rise, bend)
    careful = torch.where(steep <= 1e-15, (1e-3 * guess).clamp_min(1e-6 * span), (0.01 / steep) ** 0.2)
    return torch.minimum(100 * guess, careful).clamp_max(span)
