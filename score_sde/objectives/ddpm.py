r"""Training on the steps of a discrete chain (Ho et al. 2020; Nichol and Dhariwal 2021).

``score_sde.chain`` derives the chain and its bound. Of N steps one is drawn for each sample. With F the output of the network
and F* its own target (``score_sde.parameterization``),

    simple   mean (F - F*)^2                            (Ho et al. 2020, Eq. 14, for epsilon)
    vlb      N L                                        (Ho et al. 2020, Eq. 5)
    hybrid   simple + 0.001 N L                         (Nichol and Dhariwal 2021, Eq. 16)

L is the step's term of the bound, in bits per dimension: the divergence of the two Gaussians, and in step 0 the negative
log-likelihood of the data. So the mean of ``vlb`` is the bound less its prior term, which has no parameters.

The error of the score is e = epsilon + sigma score, and F - F* = e / (sigma b). With a fixed variance the divergence of a step
is, in nats and up to a constant, the weighted square of Eq. 12 (Ho et al. 2020),

    beta^2 / (2 Sigma (1 - beta) sigma^2) ||e||^2.

``hybrid`` trains the mean by the first part alone: in its L the error e is detached, and only Sigma has a gradient. ``vlb``
detaches nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from score_sde.chain import Chain, chain_nodes
from score_sde.composition import leaves
from score_sde.data import Batch, DataSpec
from score_sde.draws import Draws
from score_sde.inputs import require_float
from score_sde.model import LEARNED_VARIANCES, ScoreModel
from score_sde.objectives.base import Objective, State, Terms
from score_sde.objectives.steps import STEPS, StepRule
from score_sde.score import Score, data_of, score_and_variance
from score_sde.sdes import SDE, TabulatedSDE
from score_sde.sdes.memory import remembered
from score_sde.tables import Choice, require_name
from score_sde.tensors import Condition, expand, mean_event
from score_sde.transitions import VARIANCES

LOSSES = ("simple", "vlb", "hybrid")
BOUND_IN_HYBRID = 0.001
FIXED = tuple(name for name, v in VARIANCES.items() if v is not None)


class ChainTerms(Terms):
    """What an objective says of one step of a chain."""

    @property
    def mse(self) -> Tensor:
        """The squared error in the target of the parameterization, averaged over dimensions, ``(B,)``."""
        return self.parts["mse"]

    @property
    def vlb(self) -> Tensor:
        """The step's term of the bound, in bits per dimension, ``(B,)``; not there for the loss ``simple``."""
        return self.parts["vlb"]


@dataclass(frozen=True)
class DDPM(Objective):
    """The losses of a chain of discrete steps.

    Its nodes are the table's where the SDE is a ``TabulatedSDE``, else k T / N.

    A bound on integers has the probabilities of their bins; if they are dequantized, it is looser. A bound on continuous data
    has densities in model coordinates.

    Args:
        loss: ``simple``, ``vlb`` or ``hybrid``. With a fixed variance ``hybrid`` trains as ``simple`` does, and logs the bound.
        variance: of the model's steps: ``beta_tilde`` or ``beta``, or ``learned_range`` or ``learned``, which must be the
            model's own ``variance`` and is trained by the bound.
        times: how steps are drawn, a name in ``STEPS`` or an object.
        steps: N where the SDE is no table.

    Raises:
        ValueError: a name is unknown, or no bound trains the learned variance.
    """

    loss: str = "simple"
    variance: str = "beta_tilde"
    times: Choice[StepRule] = Choice(STEPS, "uniform")
    steps: int = 1000

    def __post_init__(self):
        require_name("loss", self.loss, LOSSES)
        require_name("variance", self.variance, (*FIXED, *LEARNED_VARIANCES))
        if self.trains_variance and self.loss == "simple":
            raise ValueError(f"no bound would train variance {self.variance}: take loss vlb or hybrid, or variance beta_tilde")

    @property
    def trains_variance(self) -> bool:
        return self.variance in LEARNED_VARIANCES

    def begin(self, model: ScoreModel) -> State:
        self.check(model)
        return self.times.begin(len(self.chain(model.sde).nodes))

    def check(self, model: ScoreModel) -> None:
        """Check that the model has what this objective trains.

        Raises:
            ValueError: the SDE has one level of noise, the model has no learned variance or reads it in another way, or the
                bound needs to know the data.
        """
        super().check(model)
        if self.trains_variance:
            models = [leaf for leaf in _leaves(model) if isinstance(leaf, ScoreModel)]
            if not hasattr(model, "score_and_variance") or not all(leaf.learned_variance for leaf in models):
                raise ValueError(f"variance {self.variance} needs a network with learned_variance=True")
            for leaf in models:
                if leaf.variance != self.variance:
                    raise ValueError(
                        f"the objective trains the variance {self.variance}, and the model reads its output as "
                        f"{leaf.variance}: give both the same variance"
                    )
        if self.loss != "simple":
            self._data_of(model)

    def __call__(self, model: ScoreModel, batch: Batch, draws: Draws, state: State) -> Terms:
        chain = self.chain(model.sde, batch.values.device)
        u, noise = draws.uniform("times", batch.values.shape[:1]), draws.normal("noise", batch.values.shape)
        step, weight = self.times.sample(u, len(chain.nodes), state)
        terms = self.terms(model, batch.values, step, noise, batch.cond)
        weight = weight.to(terms.loss)
        return Terms(
            weight * terms.loss,
            {name: weight * part for name, part in terms.parts.items()},
            times=chain.nodes[step],
            observed={"step": step, "loss": terms.loss},
        )

    def learn(self, state: State, observed: Mapping[str, Tensor]) -> State:
        return self.times.learn(state, observed["step"], observed["loss"])

    def terms(self, model: ScoreModel, x0: Tensor, step: Tensor, noise: Tensor, cond: Condition | None = None) -> ChainTerms:
        """The loss and its parts ``mse`` and, but for ``simple``, ``vlb`` of one step for each sample, without weights.

        Args:
            model: the model, or any score with its SDE; the target of a score is epsilon.
            x0: data in model coordinates, ``(B, *D)``.
            step: int64 ``(B,)``: step k, counted from 0, begins at the node k + 1.
            noise: standard normal noise, ``(B, *D)``.
            cond: what the model is conditioned on.

        Raises:
            ValueError: x0 is not of floating-point numbers, the steps are not of this form, or the model does not fit.
        """
        self.check(model)
        require_float("x0", x0)
        chain = self.chain(model.sde, x0.device)
        _require_steps(step, len(x0), len(chain.nodes))
        t, (low, high) = chain.nodes[step], chain.variance_ends(step)
        x = model.sde.perturb(x0, t, noise).to(_state_dtype(model, x0))
        if self.trains_variance:
            score, log_variance = score_and_variance(model, x, t.to(x), (low, high), cond)
            r = log_variance - expand(low, x)
        else:
            score, r = model(x, t.to(x), cond), chain.fixed_excess(step, VARIANCES[self.variance] or 0.0)
        sigma = model.sde.sigma(t)
        error = noise + expand(sigma, x) * score.double()
        share = sigma * model.coefficients(t).b if isinstance(model, ScoreModel) else -torch.ones_like(sigma)
        mse = mean_event(error**2) / share**2
        if self.loss == "simple":
            return ChainTerms(mse.to(x0), {"mse": mse.to(x0)})
        vlb = self._bound(chain, model, x0, step, error.detach() if self.loss == "hybrid" else error, r)
        loss = len(chain.nodes) * vlb
        if self.loss == "hybrid":
            loss = mse + BOUND_IN_HYBRID * loss
        return ChainTerms(loss.to(x0), {"mse": mse.to(x0), "vlb": vlb.to(x0)})

    def chain(self, sde: SDE, device: torch.device | str = "cpu") -> Chain:
        """The chain that an SDE is trained on."""
        return _chain(sde, None if isinstance(sde, TabulatedSDE) else self.steps, str(device))

    def _bound(self, chain: Chain, model: ScoreModel, x0: Tensor, step: Tensor, error: Tensor, r: Tensor) -> Tensor:
        data, first = self._data_of(model), step == 0
        integers = None if data.levels is None else data.quantized(x0)
        # of every row, masked before and after: to ask which rows there are would make a GPU wait
        error_0, r_0 = (torch.where(expand(first, part) if part.ndim > 1 else first, part, 0) for part in (error, r))
        at_data = chain.reconstruction(x0, integers, error_0, r_0, data)
        nats = torch.where(first, at_data, chain.divergence(error, step, r))
        return nats / (x0[0].numel() * math.log(2))

    def _data_of(self, model: ScoreModel) -> DataSpec:
        data = data_of(model)
        if data is None:
            raise ValueError(f"the loss {self.loss} needs to know the data: give a ScoreModel, or a score with its DataSpec")
        return data


def _leaves(score: Score) -> tuple[Any, ...]:
    return (score,) if isinstance(score, ScoreModel) else leaves(score)


def _state_dtype(score: Score, x0: Tensor) -> torch.dtype:
    """float64 for models, which round no more than what their network is given; other scores may take nothing but their own.

    The errors of x0 and of mu are those of the score times sigma / alpha, or beta / sigma: rounding of x would be amplified.
    """
    ours = all(isinstance(leaf, ScoreModel) for leaf in _leaves(score))
    return torch.float64 if ours else torch.promote_types(x0.dtype, torch.float32)


def _require_steps(step: Tensor, count: int, steps: int) -> None:
    if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.shape != (count,):
        got = f"{step.dtype} of shape {tuple(step.shape)}" if isinstance(step, Tensor) else type(step).__name__
        raise ValueError(f"step must be a tensor of int64 of shape ({count},), got {got}")
    if step.device.type == "cpu" and count and not 0 <= step.min() <= step.max() < steps:  # a GPU would have to wait
        raise ValueError(f"steps are counted from 0 to {steps - 1}, got {step.min()} to {step.max()}")


@remembered(16)
def _chain(sde: SDE, steps: int | None, device: str) -> Chain:
    with torch.inference_mode(False), torch.no_grad():
        return Chain(sde, chain_nodes(sde, steps).to(device))
