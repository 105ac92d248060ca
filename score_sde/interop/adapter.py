"""Any ``nn.Module`` as a ``ScoreModel``: what it predicts, how it takes time, and where its data lies."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.data import DataSpec
from score_sde.model import ScoreModel
from score_sde.networks.contract import Network, state
from score_sde.sdes import SDE
from score_sde.tensors import Condition

Call = Callable[[nn.Module, Tensor, Tensor, Any], Tensor]


def adapt(
    module: nn.Module,
    shape: Sequence[int],
    sde: SDE,
    *,
    predicts: str = "epsilon",
    time: str | Callable[[Tensor], Tensor] = "label",
    labels: int = 1000,
    scale_input: bool = False,
    sigma_data: float = 0.5,
    variance: str = "learned_range",
    levels: int | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    call: Call | None = None,
) -> ScoreModel:
    """A ``ScoreModel`` of a network that was trained elsewhere.

    >>> model = adapt(network, (3, 32, 32), VPSDE(), predicts="v", time="label", levels=256)

    Args:
        module: the network, which is put into evaluation mode. It is called as ``module(x, time)``, or as
            ``module(x, time, cond)`` where a condition is given.
        shape: event shape ``D``.
        sde: the SDE under which it was trained.
        predicts: what it returns, a key of ``PARAMETERIZATIONS``.
        time: how it takes time: a key of ``TIME_INPUTS``, or a function of t ``(B,)`` in [0, T] that gives what it takes.
        labels: number of steps of a discrete chain that ``time`` counts.
        scale_input: whether it was trained on inputs of unit scale, c_in x, in place of x.
        sigma_data: root mean square of the data, for ``edm``.
        variance: how the second half of its output is read where it has ``learned_variance``, as ``ScoreModel`` has it.
        levels: for integer data, the number of its values.
        data_range: the interval in which the data that it was trained on lies.
        call: how it is called, a function of module, x ``(B, *D)``, time ``(B,)`` and condition, where it takes or returns
            something else: ``lambda module, x, time, cond: module(x, timestep=time).sample`` for example.

    Raises:
        ValueError: a name is unknown, a number is out of its range, or the module takes the logarithm of a time that is not
            positive.
    """
    adapted = _Adapted(module, call, None if isinstance(time, str) else time)
    if callable(time) and adapted.takes_logarithm:
        lowest = time(torch.tensor([sde.t_min, sde.T])).min().item()
        if not lowest > 0:
            raise ValueError(f"the network takes the logarithm of its time, which this function lets fall to {lowest:.3g}")
    if levels is None:
        data = DataSpec(tuple(shape), data_range=data_range, model_range=data_range, limits=(data_range,))
    else:
        data = DataSpec(tuple(shape), levels=levels, model_range=data_range)
    return ScoreModel(
        adapted,
        sde,
        data,
        parameterization=predicts,
        time_input=time if isinstance(time, str) else "time",
        labels=labels,
        scale_input=scale_input,
        sigma_data=sigma_data,
        variance=variance,
    ).eval()


class _Adapted(Network):
    def __init__(self, module: nn.Module, call: Call | None, time: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.module, self.call, self.time = module, call, time
        state(self, module)
        if call is not None:  # what the module is given is known to the call alone
            self.takes_logarithm, self.event = False, None

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None) -> Tensor:
        time = time if self.time is None else self.time(time)
        if self.call is not None:
            return self.call(self.module, x, time, cond)
        return self.module(x, time) if cond is None else self.module(x, time, cond)
