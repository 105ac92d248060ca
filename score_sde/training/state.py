"""All that a training run has learned so far: what a checkpoint holds, and how a run goes on from one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.checkpoint import (
    CheckpointError,
    check_training_state,
    latest_checkpoint,
    load_newest,
    load_optimizer,
    load_weights,
    same_run,
)
from score_sde.ema import EMA
from score_sde.model import ScoreModel
from score_sde.networks.dropout import Dropout, dropout_layers
from score_sde.objectives import Objective
from score_sde.objectives.base import State
from score_sde.training.options import TrainingOptions


@dataclass
class TrainState:
    """The state of a training run between two steps.

    Args:
        model: the model that is trained.
        ema: the average of its weights.
        optimizer: AdamW, with what it has gathered.
        objective: what the objective has learned.
        step: the number of steps taken.
        pending: loss, gradient norm and the parts of the loss, ``(2 + parts,)``, of each step since a line of the log was due.
        times: the times ``(B,)`` of the last of these steps, those since the state was read; None for a step without times.
        seconds: how long training has taken.
        identity: of the run; it is written into its checkpoints.
        checkpoint: the sound checkpoint of this state, or the last one before it.
        newest: the newest checkpoint that the run had when this state was read or saved, sound or not.
    """

    model: ScoreModel
    ema: EMA[ScoreModel]
    optimizer: torch.optim.Optimizer
    objective: State
    step: int = 0
    pending: list[Tensor] = field(default_factory=list)
    times: list[Tensor | None] = field(default_factory=list)
    seconds: float = 0.0
    identity: str | None = None
    checkpoint: Path | None = None
    newest: Path | None = None
    dropouts: dict[str, Dropout] = field(init=False)

    def __post_init__(self) -> None:
        self.dropouts = dropout_layers(self.model)

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint holds, beside the step."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective,
            "pending": torch.stack(self.pending) if self.pending else torch.zeros(0, 2),
            "seconds": self.seconds,
            "run": self.identity,
        }

    def load(self, saved: dict[str, Any], path: Path) -> None:
        """Take over what the checkpoint at ``path`` holds.

        Raises:
            CheckpointError: it is not one of this run, or not of this model, optimizer and objective.
        """
        self.identity = same_run(saved, self.identity, path)
        check_training_state(saved, path)
        load_weights(self.model, saved["model"], path)
        load_weights(self.ema.model, saved["ema"], path)
        load_optimizer(self.optimizer, saved["optimizer"], path)
        learned = saved.get("objective", self.objective)  # version 0.1.0 wrote none
        if {name: value.shape for name, value in learned.items()} != {n: v.shape for n, v in self.objective.items()}:
            raise CheckpointError(f"{path} holds what another objective has learned: {', '.join(learned) or 'nothing'}")
        self.objective = learned
        self.ema.updates, self.step, self.seconds = saved["ema_updates"], saved["step"], saved["seconds"]
        self.pending = list(saved["pending"].to(self.model.device).unbind(0))
        self.checkpoint = path


def begin(
    model: ScoreModel,
    objective: Objective,
    options: TrainingOptions,
    *,
    device: torch.device | str = "cpu",
    pretrained: bool = False,
    identity: str | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        model: the model; it is moved to ``device``.
        objective: what training makes small.
        options: how to train.
        device: where to train.
        pretrained: whether the model's weights were trained before, so that their average may begin with them.
        identity: of the run.

    Raises:
        ValueError: the model has a learned variance, which the objective does not train, the objective is not one for this
            model, or needs second derivatives, which a compiled network has not.
    """
    if model.learned_variance and not objective.trains_variance:
        raise ValueError(
            "the objective leaves a learned variance at its initial value: set learned_variance to False, or train it by the "
            "objective ddpm, loss hybrid, variance learned_range"
        )
    objective.check(model)
    if options.compile and objective.differentiates:
        raise ValueError(
            f"what training.compile makes has no second derivatives, which {type(objective).__name__} needs: set it to False"
        )
    model = model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.learning_rate,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )
    ema = EMA(model, options.ema_decay, warm_up=not pretrained)
    if options.compile:
        model.network.compile()
    learned = {name: value.to(device) for name, value in objective.begin(model).items()}
    return TrainState(model, ema, optimizer, learned, identity=identity)


def resume(folder: Path | str, state: TrainState) -> TrainState:
    """``state`` with what the newest sound checkpoint of the run in ``folder`` holds, or as it is where there is none.

    Args:
        folder: the run's.
        state: what ``begin`` gives; it is changed in place.

    Raises:
        CheckpointError: there are checkpoints, and none is sound, or the newest is not one of this run.
    """
    checkpoints = Path(folder) / "checkpoints"
    found = load_newest(checkpoints, state.model.device)
    state.newest = latest_checkpoint(checkpoints)
    if found:
        path, saved = found
        state.load(saved, path)
    return state
