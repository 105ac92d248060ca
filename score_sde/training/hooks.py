"""What is done between the steps of training: the log, the test loss, checkpoints and pictures.

A hook of your own is an object with the two methods of ``Hook``. It may look at everything that the trainer has.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from score_sde.checkpoint import set_aside
from score_sde.data import read
from score_sde.draws import Draws
from score_sde.files import append_metrics, read_metrics, write_text
from score_sde.sdes import FixedNoise
from score_sde.solvers import DDIM
from score_sde.tensors import derive_seed
from score_sde.training.trainer import Hook, Trainer


def held_out_loss(trainer: Trainer) -> float:
    """The averaged weights' mean loss of at most 512 held-out samples, always at the same times and noise."""
    state, size, test = trainer.state, trainer.options.batch_size, trainer.data.test
    count, total, seed = min(512, len(test)), 0.0, derive_seed(trainer.seed, "test")
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        draws = Draws(seed, 0, count, rows=rows, device=trainer.device)
        total += trainer.take.measure(state.ema.model, read(test, rows), draws, state.objective).loss.double().sum().item()
    return total / count


@dataclass(frozen=True)
class Log:
    """Writes a line of ``metrics.jsonl`` every ``log_every`` steps.

    Args:
        measures: figures that are measured every ``sample_every`` steps and at the end, by their names.
    """

    measures: Mapping[str, Callable[[Trainer], float]] = field(default_factory=lambda: {"test_loss": held_out_loss})

    def begin(self, trainer: Trainer) -> None:
        """Remove what was logged after the step, and lines that are damaged."""
        path = _metrics(trainer)
        if not path.exists():
            return
        content = path.read_bytes()
        lines, damaged = read_metrics(path)
        cut_off = not content.endswith(b"\n") and content.count(b"\n") + 1  # by a crash, while it was written
        if any(number != cut_off for number in damaged):
            numbers = ", ".join(str(number) for number in damaged if number != cut_off)
            warnings.warn(f"{path} is damaged in line {numbers}: these lines are left out, all others are kept", stacklevel=4)
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= trainer.state.step]
        write_text(path, "".join(kept))

    def after_step(self, trainer: Trainer) -> None:
        """Write a line when it is due."""
        if not trainer.due(trainer.options.log_every):
            return
        state = trainer.state
        line = {"step": state.step, **trainer.figures}
        line["learning_rate"] = trainer.options.learning_rate_at(state.step - 1)
        if trainer.due(trainer.options.sample_every):
            line |= {name: measure(trainer) for name, measure in self.measures.items()}
        line["seconds"] = round(state.seconds, 2)
        append_metrics(_metrics(trainer), line)
        trainer.progress.note({name: line[name] for name in ("loss", *self.measures) if name in line})


@dataclass(frozen=True)
class Checkpoints:
    """Saves the state every ``checkpoint_every`` steps, at the end, and when training is to stop."""

    def begin(self, trainer: Trainer) -> None:
        """Rename checkpoints that are damaged, so that new ones can take their names."""
        state = trainer.state
        if state.checkpoint:
            set_aside(trainer.folder / "checkpoints", state.checkpoint)
            state.newest = state.checkpoint

    def after_step(self, trainer: Trainer) -> None:
        """Save when it is due."""
        if trainer.due(trainer.options.checkpoint_every) or trainer.stopped_by:
            trainer.save()


@dataclass(frozen=True)
class Pictures:
    """Draws samples of the averaged weights every ``sample_every`` steps and at the end.

    They are told the classes in turn, or the conditions of held-out samples. Of a model with one level of noise there are none:
    which step of Langevin dynamics suits the data is not known.
    """

    def begin(self, trainer: Trainer) -> None:
        """Draw the picture of a step whose process was killed before it did."""
        if trainer.state.step and not self.path(trainer).exists():
            self.after_step(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Draw when it is due."""
        if not trainer.due(trainer.options.sample_every) or isinstance(trainer.state.model.sde, FixedNoise):
            return
        from score_sde.images import picture, save_png  # here: it imports Pillow

        spec, model, test = trainer.data.spec, trainer.state.ema.model, trainer.data.test
        count = 1000 if spec.shape == (2,) else 36
        cond: Any = None  # of several tensors only the model knows
        if model.classes:
            cond = torch.arange(count, device=trainer.device) % model.classes
        elif model.cond_shape is not None:
            cond = read(test, torch.arange(count) % len(test)).to(trainer.device).cond
        solver, shape = DDIM(steps=30, grid="log_snr"), (count, *spec.shape)
        drawn = solver.sample(model, shape, seed=trainer.seed, cond=cond, denoise=True)
        save_png(picture(spec.displayed(drawn.x)), self.path(trainer))

    def path(self, trainer: Trainer) -> Path:
        """The file of the picture of this step."""
        return trainer.folder / "samples" / f"step_{trainer.state.step:09d}.png"


def _metrics(trainer: Trainer) -> Path:
    return trainer.folder / "metrics.jsonl"


STANDARD_HOOKS: tuple[Hook, ...] = (Log(), Checkpoints(), Pictures())
"""What a run has: a log, then checkpoints, so that no line is lost, then pictures, which take time."""
