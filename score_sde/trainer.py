r"""Training: the average of a denoising score matching loss, by Adam, with a moving average of the weights.

Every random number of step n, of the batch, times, noise and dropout alike, comes from (seed, n). Together with checkpoints
that hold weights, averages, the optimizer and the losses not yet logged, a run that was interrupted anywhere and continued is
the uninterrupted run, bit for bit (with the same number of threads).
"""

import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.checkpoint import (
    check_training_state,
    latest_checkpoint,
    load_newest,
    load_optimizer,
    load_weights,
    same_run,
    save_checkpoint,
    set_aside,
)
from score_sde.data import Batch, Dataset, DataSource, EpochOrder, read, warn_of_fine_structure
from score_sde.draws import Draws
from score_sde.ema import EMA
from score_sde.files import append_metrics, read_metrics, remove_leftovers, sync_file, write_text
from score_sde.images import picture, save_png
from score_sde.lock import sole_writer
from score_sde.model import ScoreModel
from score_sde.networks.dropout import dropout_layers, masks_from
from score_sde.objectives import DenoisingScoreMatching, Objective, Terms
from score_sde.progress import Progress
from score_sde.solvers import DDIM
from score_sde.tensors import derive_seed, expand

PRECISIONS = ("float32", "bfloat16")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and a remedy."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained.

    Args:
        steps: optimizer steps.
        batch_size: samples per step.
        learning_rate: Adam's, after the warm-up.
        warmup: steps over which the learning rate rises linearly from 0.
        schedule: ``constant``, or ``cosine`` for a fall to 0 at the last step.
        beta2: decay of Adam's second moment.
        weight_decay: decoupled weight decay.
        clip: largest norm of the gradient; 0 for no clipping.
        ema_decay: decay of the moving average of the weights.
        flip: mirror each image with probability 1/2.
        class_dropout: probability with which a network with classes is not told a sample's class.
        precision: ``float32``, or ``bfloat16`` for a network that computes in bfloat16 where that is safe (autocast); weights,
            coefficients and the loss stay in float32.
        compile: compile the network, which takes a minute and pays on long runs.
        log_every: steps per line of metrics.jsonl.
        sample_every: steps between sample pictures and test losses; 0 for none.
        checkpoint_every: steps between checkpoints; the last step always has one.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    schedule: str = "constant"
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.999
    flip: bool = False
    class_dropout: float = 0.1
    precision: str = "float32"
    compile: bool = False
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "sample_every", "clip", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.class_dropout <= 1:
            raise ValueError(f"training.class_dropout must lie between 0 and 1, got {self.class_dropout}")
        for name in ("learning_rate", "weight_decay"):  # an infinite clip is none
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"training.{name} must be a finite number, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate must be positive, got {self.learning_rate}")
        for name, allowed in (
            ("schedule", ("constant", "cosine")),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown training.{name} {getattr(self, name)!r}; choose one of {', '.join(allowed)}")


class Trainer:
    """Trains ``model`` on ``data`` and keeps checkpoints, metrics and pictures in ``folder``.

    It continues from the newest sound checkpoint in ``folder`` where there is one. While it trains, it holds the lock of
    ``folder``, so that nobody else trains there.

    Args:
        model: the model; it is moved to ``device``.
        data: what to train on, and what to measure the test loss on.
        folder: the run directory.
        options: how to train.
        objective: what to make small.
        seed: of batches, times, noise and dropout.
        device: where to train.
        pretrained: whether the model's weights were trained before, so that their average may begin with them.
        identity: of the run, written into its checkpoints; one of a run with another identity is refused.

    Raises:
        CheckpointError: there are checkpoints, and none is sound, or the newest is not one of this run.
    """

    def __init__(
        self,
        model: ScoreModel,
        data: Dataset,
        folder: Path,
        options: TrainingOptions,
        objective: Objective = DenoisingScoreMatching(),
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        pretrained: bool = False,
        identity: str | None = None,
    ):
        if options.flip and len(data.spec.shape) < 3:
            raise ValueError(f"training.flip mirrors images (C, H, W); the data has shape {data.spec.shape}")
        self.model, self.data, self.folder, self.options = model.to(device), data, Path(folder), options
        self.objective, self.objective_state = objective, objective.begin()
        self.seed, self.device = seed, torch.device(device)
        for source in (data.train, data.test):
            self._check_classes(source)
        if model.learned_variance:
            raise ValueError("score matching leaves a learned variance at its initial value: set learned_variance to False")
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=options.learning_rate,
            betas=(0.9, options.beta2),
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.ema = EMA(model, options.ema_decay, warm_up=not pretrained)
        if options.compile:
            model.network.compile()
        self.dropouts = dropout_layers(model)
        self.step = 0
        self.pending: list[Tensor] = []  # (loss, gradient norm) of each step not yet logged
        self.order = EpochOrder(len(data.train), seed)
        self.seconds = 0.0
        self.identity = identity
        self.saved: Path | None = None  # the checkpoint of this state, or the last one before it
        newest = load_newest(self.folder / "checkpoints", self.device)
        self.found = latest_checkpoint(self.folder / "checkpoints")  # the newest, sound or not
        if newest:
            self._resume(*newest)
        else:
            sde = model.sde
            warn_of_fine_structure(data.train, float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min)))

    def train(self, *, progress: bool = True, announce: Callable[[str], None] = print) -> int | None:
        """Train up to ``options.steps``.

        Ctrl-C and SIGTERM stop after the current step, with a checkpoint.

        Returns:
            None when all steps are done, else the number of the signal that stopped it.

        Raises:
            TrainingError: the loss or the gradient is not finite any more; nothing is saved from then on.
            LockedError: another process trains in the folder.
            WriteError: a file cannot be written; the checkpoints are as they were.
        """
        with sole_writer(self.folder):
            self._prepare_folder()
            return self._train(progress, announce)

    def _train(self, progress: bool, announce: Callable[[str], None]) -> int | None:
        options, began = self.options, time.perf_counter() - self.seconds
        devices = [self.device] if self.device.type == "cuda" else []
        bar = Progress("training", options.steps, unit="step", done=self.step, shown=progress)
        with bar, torch.random.fork_rng(devices), _Interrupt() as interrupt:
            if self._picture_due() and self.step and not self._picture().exists():
                self._draw()  # the process that took this step was killed before
            while self.step < options.steps:
                self._take_step()
                self.seconds = time.perf_counter() - began
                last = self.step == options.steps
                if self.step % options.log_every == 0 or last:
                    line = self._log(tested=options.sample_every > 0 and (self.step % options.sample_every == 0 or last))
                    bar.note({key: line[key] for key in ("loss", "test_loss") if key in line})
                stop = interrupt.signal  # read once: a signal that comes later waits for the next step
                if self.step % options.checkpoint_every == 0 or last or stop:
                    self.save()
                if self._picture_due():
                    self._draw()
                bar.update()
                if stop and not last:
                    announce(f"stopped at step {self.step} of {options.steps}; the checkpoint is saved")
                    return stop
        return None

    def save(self) -> Path:
        """Write a checkpoint of the current step, after checking that everything since the last one was finite."""
        self._check_finite()
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "pending": torch.stack(self.pending) if self.pending else torch.zeros(0, 2),
            "seconds": self.seconds,
            "run": self.identity,
        }
        with sole_writer(self.folder):
            sync_file(self.folder / "metrics.jsonl")  # what was logged before must not be lost when the checkpoint is not
            self.saved = self.found = save_checkpoint(self.folder / "checkpoints", self.step, state)
        return self.saved

    def loss(self, model: ScoreModel, batch: Batch, draws: Draws) -> Terms:
        """The objective on samples in data units, in the state in which it is now."""
        return self.objective(model, self._encoded(batch, draws), draws, self.objective_state)[0]

    def _encoded(self, batch: Batch, draws: Draws) -> Batch:
        """The batch in model coordinates: dequantized, and mirrored where that is an option."""
        spec, values = self.data.spec, batch.values
        dequantized = spec.levels is not None and spec.dequantize
        x0 = spec.encode(values, draws.uniform("dequantization", values.shape) if dequantized else torch.zeros(()))
        if self.options.flip:
            mirrored = draws.uniform("flip", x0.shape[:1]) < 0.5
            x0 = torch.where(expand(mirrored, x0), x0.flip(-1), x0)
        return Batch(x0, batch.cond)

    def _draws(self, step: int) -> Draws:
        return Draws(self.seed, step, self.options.batch_size, device=self.device)

    def _take_step(self) -> None:
        options, draws = self.options, self._draws(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.step)
        _seed_torch(draws.seed_of("torch"), self.device)
        self.model.train()
        rows = self.order.rows(self.step * options.batch_size, options.batch_size)
        values, cond = self._told(self.data.train.batch(rows))
        if cond is not None:
            untold = draws.uniform("class dropout", rows.shape) < options.class_dropout
            cond = torch.where(untold, self.model.classes, cond)
        batch = self._encoded(Batch(values, cond), draws)
        with masks_from(draws.uniform, self.dropouts):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                terms, self.objective_state = self.objective(self.model, batch, draws, self.objective_state)
                loss = terms.loss.mean()
            self.optimizer.zero_grad()
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.clip or math.inf)
        self.optimizer.step()
        self.ema.update(self.model)
        self.pending.append(torch.stack([loss.detach(), norm]))
        self.step += 1

    def _check_classes(self, source: DataSource) -> None:
        """Refuse data whose classes are not those of the network, where it has any."""
        known, classes = self.model.classes, source.classes
        if not known:
            return
        if classes is None:
            raise ValueError(f"the network has {known} classes, but the data has none: set its option classes to 0")
        if classes.max() >= known:
            raise ValueError(f"the network has {known} classes, the data has {int(classes.max()) + 1}: set its option classes")
        if self.options.class_dropout and not getattr(self.model.network, "knows_no_class", True):
            raise ValueError("the network must be told the class of every sample: set training.class_dropout to 0")

    def _told(self, batch: Batch) -> Batch:
        """A batch on the device of the model, with classes where the network has any."""
        return (batch if self.model.classes else Batch(batch.values)).to(self.device)

    def _learning_rate(self, step: int) -> float:
        options = self.options
        rise = min(1.0, (step + 1) / max(1, options.warmup))
        fall = (1 + math.cos(math.pi * step / options.steps)) / 2 if options.schedule == "cosine" else 1.0
        return options.learning_rate * rise * fall

    def _check_finite(self) -> None:
        if not self.pending or torch.stack(self.pending).isfinite().all():
            return
        values = torch.stack(self.pending).tolist()
        bad = next(i for i, pair in enumerate(values) if not all(map(math.isfinite, pair)))
        step = self.step - len(values) + bad
        t, _ = self.objective.sample_times(self.model.sde, self._draws(step))
        kept = f"the last checkpoint, {self.saved.name}, is sound" if self.saved else "no checkpoint was written before"
        raise TrainingError(
            f"the loss is {values[bad][0]:g} and the norm of its gradient {values[bad][1]:g} in step {step + 1}, with t from "
            f"{t.min().item():.3g} to {t.max().item():.3g}; {kept}: lower training.learning_rate, lengthen "
            "training.warmup, or set training.clip"
        )

    def _log(self, *, tested: bool) -> dict[str, float]:
        self._check_finite()
        loss, norm = torch.stack(self.pending).mean(0).tolist()
        line = {"step": self.step, "loss": loss, "gradient_norm": norm, "learning_rate": self._learning_rate(self.step - 1)}
        if tested:
            line["test_loss"] = self._test_loss()
        line["seconds"] = round(self.seconds, 2)
        append_metrics(self.folder / "metrics.jsonl", line)
        self.pending = []
        return line

    @torch.no_grad()
    def _test_loss(self) -> float:
        """The averaged weights' loss on at most 512 held-out samples, always at the same times and noise."""
        batch = self._told(read(self.data.test, slice(512)))
        draws = Draws(derive_seed(self.seed, "test"), 0, len(batch.values), device=self.device)
        return self.loss(self.ema.model, batch, draws).loss.mean().item()

    def _picture_due(self) -> bool:
        every = self.options.sample_every
        return every > 0 and (self.step % every == 0 or self.step == self.options.steps)

    def _picture(self) -> Path:
        return self.folder / "samples" / f"step_{self.step:09d}.png"

    def _draw(self) -> None:
        spec = self.data.spec
        count = 1000 if spec.shape == (2,) else 36
        classes = self.model.classes
        cond = torch.arange(count, device=self.device) % classes if classes else None
        solver, shape = DDIM(steps=30, grid="log_snr"), (count, *spec.shape)
        drawn = solver.sample(self.ema.model, shape, seed=self.seed, cond=cond, denoise=True)
        save_png(picture(spec.displayed(drawn.x)), self._picture())

    def _resume(self, path: Path, state: dict[str, Any]) -> None:
        self.identity = same_run(state, self.identity, path)
        check_training_state(state, path)
        load_weights(self.model, state["model"], path)
        load_weights(self.ema.model, state["ema"], path)
        load_optimizer(self.optimizer, state["optimizer"], path)
        self.ema.updates, self.step, self.seconds = state["ema_updates"], state["step"], state["seconds"]
        self.pending = list(state["pending"].to(self.device).unbind(0))
        self.saved = path

    def _prepare_folder(self) -> None:
        """Make the folder what it was at the step that training goes on from."""
        checkpoints = self.folder / "checkpoints"
        if latest_checkpoint(checkpoints) != self.found:
            raise TrainingError(f"another training wrote to {self.folder} since this one was prepared: start it again")
        remove_leftovers(self.folder)
        if self.saved:
            set_aside(checkpoints, self.saved)
            self.found = self.saved
        self._truncate_metrics()

    def _truncate_metrics(self) -> None:
        """Remove what was logged after the checkpoint, and lines that are damaged."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        content = path.read_bytes()
        lines, damaged = read_metrics(path)
        cut_off = not content.endswith(b"\n") and content.count(b"\n") + 1  # by a crash, while it was written
        if any(number != cut_off for number in damaged):
            numbers = ", ".join(str(number) for number in damaged if number != cut_off)
            warnings.warn(f"{path} is damaged in line {numbers}: these lines are left out, all others are kept", stacklevel=4)
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= self.step]
        write_text(path, "".join(kept))


def _seed_torch(seed: int, device: torch.device) -> None:
    """Seed the global generator of the CPU and of ``device``, for networks of others, which may draw from it.

    ``torch.manual_seed`` would do the same in 0.4 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


class _Interrupt:
    """Notes the first Ctrl-C or SIGTERM in ``signal``; a second one acts as usual."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self.signal: int | None = None
        # only the main thread may catch signals
        caught = self.signals if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()
