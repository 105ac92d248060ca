"""How a model is trained."""

import math
from dataclasses import dataclass

from score_sde.tables import require_name

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")


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
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            require_name(f"training.{name}", getattr(self, name), allowed)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall
