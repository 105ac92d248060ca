"""The variational bound of a discrete chain on the negative log-likelihood of integers, as ``score_sde.chain`` derives it."""

import torch
from torch import Tensor

from score_sde.chain import Chain, chain_nodes
from score_sde.data import DataSpec
from score_sde.inputs import whole
from score_sde.likelihood.bounds import Batch, Terms, estimate_bound
from score_sde.likelihood.record import VariationalBound
from score_sde.score import Score
from score_sde.sdes import SDE
from score_sde.tables import require_name
from score_sde.tensors import Condition, expand, total
from score_sde.transitions import VARIANCES


def discrete_bound(
    model: Score,
    values: Tensor,
    *,
    steps: int | None = None,
    nodes: Tensor | None = None,
    variance: str = "beta_tilde",
    sampled_steps: int | None = None,
    draws: int = 1,
    data: DataSpec | None = None,
    cond: Condition | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> VariationalBound:
    """The bound of a discrete chain, L_T + L_{t-1} + L_0, on the negative log-likelihood of ``values``, each sample once.

    Args:
        model: a ``ScoreModel``, or any score together with ``data``.
        values: integers from 0 to levels - 1, ``(N, *D)``.
        steps: number of steps N of the chain t_k = k T / N; by default the steps of its table for a ``TabulatedSDE``, or 1000.
        nodes: times t_1 ... t_N of a chain of one's own, rising, in place of ``steps``.
        variance: of the model's steps: ``beta_tilde``, ``beta``, or ``learned``, as the model's ``score_and_variance`` has it.
        sampled_steps: evaluate that many steps drawn for each sample, one from each of as many equal parts of the chain, which
            leaves the bound unbiased; by default all of them.
        draws: number of independent repetitions to be averaged; two or more give Monte-Carlo errors.
        data: description of the data; by default the model's.
        cond: what each sample is conditioned on: a tensor ``(N, ...)``, or several by their names.
        batch_size: samples at a time.
        seed: the noise and the steps of sample i depend on ``seed`` and i alone.
        progress: show a progress bar.

    Raises:
        DataError: the values are not data of this description.
        SolverError: the score returned NaN or infinite values.
        ValueError: an argument is not one of those allowed, or the data has no levels.
    """
    require_name("variance", variance, VARIANCES)
    if variance == "learned" and not hasattr(model, "score_and_variance"):
        raise ValueError("the score has no score_and_variance: choose variance='beta_tilde' or 'beta'")
    model.sde.require_ends()
    chain = Chain(model.sde, chain_nodes(model.sde, steps) if nodes is None else _checked(model.sde, nodes))
    inner_steps, v = len(chain.nodes) - 1, VARIANCES[variance]
    if sampled_steps is not None and not 1 <= whole("sampled_steps", sampled_steps, 0) <= inner_steps:
        raise ValueError(f"sampled_steps must lie between 1 and {inner_steps}, all steps but the first, got {sampled_steps}")
    times = sampled_steps or inner_steps

    def evaluated(batch: Batch, step: Tensor) -> tuple[Tensor, Tensor]:
        if v is not None:
            return batch.error(chain.nodes[step])[0], chain.fixed_excess(step, v)
        ends = chain.variance_ends(step)
        error, log_variance = batch.error(chain.nodes[step], ends)
        return error, log_variance - expand(ends[0].to(error), error)

    def draw(batch: Batch) -> tuple[Tensor, Tensor]:
        every = torch.arange(inner_steps)
        taken = every if sampled_steps is None else (batch.stratified() * inner_steps).long().clamp_max(inner_steps - 1).T
        inner = ((*evaluated(batch, step), step) for step in taken + 1)
        diffusion = total(chain.divergence(error, step, r) for error, r, step in inner)
        error, r = evaluated(batch, torch.tensor(0))
        reconstruction = chain.reconstruction(batch.x0, batch.integers, error, r, batch.data)
        return diffusion * (inner_steps / times), reconstruction

    first, last = chain.nodes[[0, -1]].tolist()
    terms = Terms(draw, "discrete", times, first, last, steps=inner_steps + 1, variance=variance)
    return estimate_bound(
        model, values, terms, draws=draws, data=data, cond=cond, batch_size=batch_size, seed=seed, progress=progress
    )


def _checked(sde: SDE, nodes: Tensor) -> Tensor:
    nodes = torch.as_tensor(nodes, dtype=torch.float64, device="cpu")
    if nodes.ndim != 1 or len(nodes) < 2 or not (nodes.diff() > 0).all() or nodes[0] < sde.t_min or nodes[-1] > sde.T:
        raise ValueError(f"nodes must be two or more rising times between t_min = {sde.t_min:g} and T = {sde.T:g}")
    return nodes
