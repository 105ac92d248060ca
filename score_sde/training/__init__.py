"""Training: the options, the state that is saved, what one step does, the loop, and what is done between steps."""

from score_sde.training.fit import fit
from score_sde.training.hooks import STANDARD_HOOKS, Checkpoints, Log, Pictures, held_out_loss
from score_sde.training.options import TrainingOptions
from score_sde.training.prepare import about_earlier, prepare, write_run
from score_sde.training.state import TrainState, begin, resume
from score_sde.training.step import TrainingError, TrainStep
from score_sde.training.trainer import Hook, Trainer

__all__ = [
    "STANDARD_HOOKS",
    "Checkpoints",
    "Hook",
    "Log",
    "Pictures",
    "TrainState",
    "TrainStep",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "about_earlier",
    "begin",
    "fit",
    "held_out_loss",
    "prepare",
    "resume",
    "write_run",
]
