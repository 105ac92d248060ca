"""The loop of training.

Every random number of step n comes from (seed, n). Together with checkpoints that hold weights, averages, the optimizer, what
the objective has learned and the losses not yet logged, a run that was interrupted anywhere and continued is the
uninterrupted run, bit for bit (with the same number of threads).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from score_sde.checkpoint import latest_checkpoint, save_checkpoint
from score_sde.data import Dataset, DataSource, EpochOrder, on_device, warn_of_fine_structure
from score_sde.files import remove_leftovers, sync_file
from score_sde.lock import sole_writer
from score_sde.model import ScoreModel
from score_sde.networks.contract import require_condition, shape_of
from score_sde.objectives import DenoisingScoreMatching, Objective
from score_sde.progress import Progress
from score_sde.training.interrupt import Interrupt
from score_sde.training.options import TrainingOptions
from score_sde.training.state import TrainState
from score_sde.training.step import TrainingError, TrainStep


class Hook(Protocol):
    """What is done beside the steps."""

    def begin(self, trainer: "Trainer") -> None:
        """Before the first step: make the folder what it was at the step that training goes on from."""

    def after_step(self, trainer: "Trainer") -> None:
        """After each step."""


class Trainer:
    """Trains on ``data`` and keeps checkpoints, metrics and pictures in ``folder``.

    While it trains, it holds the lock of ``folder``, so that nobody else trains there. ``take`` is the ``TrainStep`` and
    ``progress`` what is shown. ``figures`` are loss, gradient norm and parts of the loss, means over the last ``log_every``
    steps. ``stopped_by`` is the number of the signal that asked to stop after the current step.

    Args:
        state: where to go on from: what ``begin`` or ``resume`` gives.
        data: what to train on, and what to measure the test loss on.
        folder: the run directory.
        options: how to train.
        objective: what to make small.
        hooks: what is done after each step, in this order; ``STANDARD_HOOKS`` keep a log, checkpoints and pictures.
        seed: of batches, times, noise and dropout.

    Raises:
        ValueError: the options or the model do not fit the data.
    """

    def __init__(
        self,
        state: TrainState,
        data: Dataset,
        folder: Path | str,
        options: TrainingOptions,
        objective: Objective = DenoisingScoreMatching(),
        *,
        hooks: Sequence[Hook],
        seed: int = 0,
    ):
        self.state, self.data, self.folder, self.options = state, data, Path(folder), options
        self.seed, self.device, self.hooks = seed, state.model.device, tuple(hooks)
        self.take = TrainStep(objective, options, data.spec, seed=seed, device=self.device)
        self.progress = Progress("training", options.steps, shown=False)
        self.figures: dict[str, float] = {}
        self.stopped_by: int | None = None
        for source in (data.train, data.test):
            _check_condition(state.model, source, options)
        if state.checkpoint is None:
            sde = state.model.sde
            warn_of_fine_structure(data.train, float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min)))

    def train(self, *, progress: bool = True, announce: Callable[[str], None] = print) -> int | None:
        """Train up to ``options.steps``.

        Ctrl-C and SIGTERM stop after the current step, with a checkpoint.

        Args:
            progress: whether progress is shown.
            announce: takes what is to be known of the run, in a sentence.

        Returns:
            None when all steps are done, else the number of the signal that stopped it.

        Raises:
            TrainingError: the loss or the gradient is not finite any more; nothing is saved from then on.
            LockedError: another process trains in the folder.
            WriteError: a file cannot be written; the checkpoints are as they were.
        """
        state, steps = self.state, self.options.steps
        with sole_writer(self.folder):
            if latest_checkpoint(self.folder / "checkpoints") != state.newest:
                raise TrainingError(f"another training wrote to {self.folder} since this one was prepared: start it again")
            remove_leftovers(self.folder)
            self.progress = Progress("training", steps, unit="step", done=state.step, shown=progress)
            self._loop()
        if self.stopped_by and state.step < steps:
            announce(f"stopped at step {state.step} of {steps}; the checkpoint is saved")
            return self.stopped_by
        return None

    def _loop(self) -> None:
        state, size, order = self.state, self.options.batch_size, EpochOrder(len(self.data.train), self.seed)
        devices, train = [self.device] if self.device.type == "cuda" else [], on_device(self.data.train, self.device)
        began, self.stopped_by = time.perf_counter() - state.seconds, None
        with self.progress, torch.random.fork_rng(devices), Interrupt() as interrupt:
            for hook in self.hooks:
                hook.begin(self)
            while state.step < self.options.steps and not self.stopped_by:
                self.take(state, train.batch(order.rows(state.step * size, size)))
                state.seconds = time.perf_counter() - began
                if self.due(self.options.log_every):
                    self.figures = self.take.figures(state)
                self.stopped_by = interrupt.signal  # read once: a signal that comes later waits for the next step
                for hook in self.hooks:
                    hook.after_step(self)
                self.progress.update()

    def due(self, every: int) -> bool:
        """Whether work of every ``every`` steps is due now. At the end it always is; with 0 it never is."""
        return every > 0 and (self.state.step % every == 0 or self.state.step == self.options.steps)

    def save(self) -> Path:
        """Write a checkpoint of the current step, after checking that everything since the last one was finite."""
        state = self.state
        self.take.check_finite(state)
        with sole_writer(self.folder):
            sync_file(self.folder / "metrics.jsonl")  # what was logged before must not be lost when the checkpoint is not
            state.checkpoint = state.newest = save_checkpoint(self.folder / "checkpoints", state.step, state.to_save())
        return state.checkpoint


def _check_condition(model: ScoreModel, source: DataSource, options: TrainingOptions) -> None:
    """Check that the data tells what the network takes, and of its classes none that it has not.

    A network without any condition may be trained on data with classes, which it is not told.
    """
    known = model.classes
    if not known:
        told = source.batch(torch.arange(min(1, len(source)))).cond
        if model.cond_shape is not None:
            if told is None:
                raise ValueError(f"the network takes a condition of shape {model.cond_shape}, but the data has none")
            require_condition(told, min(1, len(source)), model.cond_shape)
        elif told is not None and source.classes is None:
            raise ValueError(
                f"the data has conditions, {shape_of(told)} for one sample, but the network takes none: give it an attribute "
                "cond_shape that states their shape, or train on a source without them"
            )
        return
    if source.classes is None:
        raise ValueError(f"the network has {known} classes, but the data has none: set its option classes to 0")
    if source.classes.max() >= known:
        found = int(source.classes.max()) + 1
        raise ValueError(f"the network has {known} classes, the data has {found}: set its option classes")
    if options.class_dropout and not model.knows_no_class:
        raise ValueError("the network must be told the class of every sample: set training.class_dropout to 0")
