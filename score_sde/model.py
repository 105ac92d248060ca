"""A score, and the trained model that is one.

``Score`` is all that solvers, likelihoods and guidance know. ``ScoreModel`` is the owner of everything that must agree for a
network's output to be a score: the SDE, the parameterization, how time is fed, and the map between data and model
coordinates.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from score_sde.data import DataSpec
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS, Coefficients
from score_sde.sdes import SDE
from score_sde.tensors import as_time, expand


@runtime_checkable
class Score(Protocol):
    """The gradient of log p_t(x) under the SDE that it carries.

    A score that wraps another keeps it in a dataclass field named ``score``; evaluations are then counted where they
    happen, in the innermost one. ``device`` and ``dtype``, where present, say where samples are to be drawn.
    """

    sde: SDE

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x`` ``(B, *D)`` and ``t`` ``(B,)`` to the score ``(B, *D)``; ``cond`` ``(B, ...)`` is what it is conditioned on."""
        ...


class ScoreModel(nn.Module):
    """A network with the SDE and the conventions that turn its output into a score.

    Args:
        network: a module called as ``network(x, c_noise)``, or ``network(x, c_noise, cond)`` where it is conditional,
            returning the shape of ``x``.
        sde: the forward SDE.
        data: shape, levels and scaling of the data.
        parameterization: what the network predicts, a key of ``PARAMETERIZATIONS``.
        time_input: how time is fed, a key of ``TIME_INPUTS``.
        sigma_data: standard deviation of the data in model coordinates, used by ``edm``.

    Raises:
        ValueError: a name is unknown, or ``sigma_data`` is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        data: DataSpec,
        *,
        parameterization: str = "epsilon",
        time_input: str = "label",
        sigma_data: float = 0.5,
    ):
        super().__init__()
        for kind, name, table in (
            ("parameterization", parameterization, PARAMETERIZATIONS),
            ("time_input", time_input, TIME_INPUTS),
        ):
            if name not in table:
                raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network, self.sde, self.data = network, sde, data
        self.parameterization, self.time_input, self.sigma_data = parameterization, time_input, sigma_data

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    def coefficients(self, t: Tensor | float) -> Coefficients:
        """a, b and c_in of score = a x + b F(c_in x, c_noise) at ``t``."""
        t = as_time(t)
        return PARAMETERIZATIONS[self.parameterization](self.sde.alpha(t), self.sde.sigma(t), self.sigma_data)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The score at ``x`` ``(B, *D)`` and ``t`` ``(B,)``, in the dtype of ``x``.

        The network runs in the dtype of its parameters; everything around it in float32 or better.
        """
        precise = torch.promote_types(x.dtype, torch.float32)
        state, t = x.to(precise), t.to(precise)
        a, b, c_in = self.coefficients(t)
        inputs = (expand(c_in, state) * state, TIME_INPUTS[self.time_input](self.sde, t))
        inputs = tuple(value.to(self.dtype) for value in inputs)
        output = self.network(*inputs) if cond is None else self.network(*inputs, cond)
        return (expand(a, state) * state + expand(b, state) * output.to(precise)).to(x.dtype)
