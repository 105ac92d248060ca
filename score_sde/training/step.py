"""One step of training: a batch in model coordinates, the objective, the optimizer, the average of the weights.

Every random number of step n comes from (seed, n, purpose), so a step is a function of the state and of the batch.
"""

import math

import torch
from torch import Tensor, nn

from score_sde.data import Batch, DataSpec
from score_sde.draws import Draws
from score_sde.model import ScoreModel
from score_sde.networks.dropout import masks_from
from score_sde.objectives import Objective, Terms
from score_sde.objectives.base import State
from score_sde.tensors import expand
from score_sde.training.options import TrainingOptions
from score_sde.training.state import TrainState


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and a remedy."""


class TrainStep:
    """What one step does to a ``TrainState``.

    Args:
        objective: what to make small.
        options: how to train.
        spec: what the data is.
        seed: of the run.
        device: where to train.

    Raises:
        ValueError: ``options.flip`` mirrors images, and the data is none.
    """

    def __init__(
        self,
        objective: Objective,
        options: TrainingOptions,
        spec: DataSpec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if options.flip and len(spec.shape) < 3:
            raise ValueError(f"training.flip mirrors images (C, H, W); the data has shape {spec.shape}")
        self.objective, self.options, self.spec = objective, options, spec
        self.seed, self.device = seed, torch.device(device)

    def __call__(self, state: TrainState, batch: Batch) -> None:
        """Take a step on samples in data units, and change ``state`` by it."""
        options, model, draws = self.options, state.model, self.draws(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = options.learning_rate_at(state.step)
        _seed_torch(draws.seed_of("torch"), self.device)
        model.train()
        batch = self.encode(model, batch, draws)
        if model.classes and isinstance(cond := batch.cond, Tensor):
            untold = draws.uniform("class dropout", cond.shape) < options.class_dropout
            batch = batch._replace(cond=torch.where(untold, model.classes, cond))
        with masks_from(draws.uniform, state.dropouts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                terms = self.objective(model, batch, draws, state.objective)
                loss = terms.loss.mean()
            observed = {name: value.detach() for name, value in terms.observed.items()}
            state.objective = self.objective.learn(state.objective, observed)
            state.optimizer.zero_grad()
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), options.clip or math.inf)
        state.optimizer.step()
        state.ema.update(model)
        self._note(state, [loss.detach(), norm, *(part.detach().mean() for part in terms.parts.values())])
        state.times.append(terms.times)
        self.parts = tuple(terms.parts)
        state.step += 1

    parts: tuple[str, ...] = ()
    """Names of the parts of the loss in the last step."""

    def draws(self, step: int) -> Draws:
        """The random numbers of a step."""
        return Draws(self.seed, step, self.options.batch_size, device=self.device)

    def encode(self, model: ScoreModel, batch: Batch, draws: Draws) -> Batch:
        """Samples in data units as ``model`` takes them: in model coordinates, with their condition where it takes one.

        They are dequantized where the data is, and mirrored where ``options.flip`` says so.
        """
        conditional = model.classes or getattr(model, "cond_shape", None) is not None
        batch = (batch if conditional else Batch(batch.values)).to(self.device)
        dequantized = self.spec.levels is not None and self.spec.dequantize
        uniform = draws.uniform("dequantization", batch.values.shape) if dequantized else torch.zeros(())
        x0 = self.spec.encode(batch.values, uniform)
        if self.options.flip:
            mirrored = draws.uniform("flip", x0.shape[:1]) < 0.5
            x0 = torch.where(expand(mirrored, x0), x0.flip(-1), x0)
        return batch._replace(values=x0)

    @torch.no_grad()
    def measure(self, model: ScoreModel, batch: Batch, draws: Draws, learned: State) -> Terms:
        """The objective of ``model``, or of any score, on samples in data units, where it has learned ``learned``."""
        return self.objective(model, self.encode(model, batch, draws), draws, learned)

    def figures(self, state: TrainState) -> dict[str, float]:
        """Loss, gradient norm and parts of the loss, each the mean of the steps since the last call; they are then forgotten.

        Raises:
            TrainingError: as ``check_finite``.
        """
        self.check_finite(state)
        means = torch.stack(state.pending).mean(0).tolist()
        state.pending, state.times = [], []
        return dict(zip(("loss", "gradient_norm", *self.parts), means, strict=True))

    def check_finite(self, state: TrainState) -> None:
        """Check that every loss and gradient that is not yet logged was finite.

        Raises:
            TrainingError: one was not; the message says in which step, and at which times where the objective draws any.
        """
        if not state.pending or torch.stack(state.pending).isfinite().all():
            return
        values = torch.stack(state.pending).tolist()
        bad = next(i for i, row in enumerate(values) if not all(map(math.isfinite, row)))
        step = state.step - len(values) + bad
        drawn = state.times[bad - len(values)]  # what a checkpoint holds was finite
        times = "" if drawn is None else f", with t from {drawn.min().item():.3g} to {drawn.max().item():.3g}"
        kept = (
            f"the last checkpoint, {state.checkpoint.name}, is sound"
            if state.checkpoint
            else "no checkpoint was written before"
        )
        raise TrainingError(
            f"the loss is {values[bad][0]:g} and the norm of its gradient {values[bad][1]:g} in step {step + 1}{times}; {kept}"
            ": lower training.learning_rate, lengthen training.warmup, or set training.clip"
        )

    @staticmethod
    def _note(state: TrainState, figures: list[Tensor]) -> None:
        row = torch.stack(figures)
        if state.pending and state.pending[-1].shape != row.shape:
            state.pending = []  # the steps before were taken by an objective of other parts
        state.pending.append(row)


def _seed_torch(seed: int, device: torch.device) -> None:
    """Seed the global generator of the CPU and of ``device``, for networks of others, which may draw from it.

    ``torch.manual_seed`` would do the same in 0.4 ms.
    """
    if device.type in ("cpu", "cuda"):
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
