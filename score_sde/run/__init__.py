"""The run directory: everything that a trained model is, as plain files.

config.json          the config as plain values, the description of the data, and the identity of the run
checkpoints/         numbered checkpoints of a training run
model.safetensors    the weights alone, of a model that was imported or exported
metrics.jsonl        a line per ``log_every`` steps
moments.safetensors  mean and covariance (or spectrum) of the training data in model coordinates
train.lock           there while the run is being trained
tuned.json           solvers chosen by measurement, one for each number of evaluations
samples/  compare/   what was made from it, a name for each protocol
likelihood_*.json  likelihood_*.npz   records of likelihoods, and the values of single samples
bounds/  dequantizer.safetensors      records of all bounds, and the learned dequantization

Every file that is read again has a digest in it (``score_sde.files``). What older versions wrote is read
(``score_sde.run.migrations``).
"""

from score_sde.run.building import Config, build_data, build_model, build_objective, build_solver, data_spec
from score_sde.run.errors import (
    EditedConfig,
    NotARun,
    NoTuned,
    NoWeights,
    RunError,
    TunedOtherwise,
    UnusableMoments,
    UnusableTuned,
)
from score_sde.run.loading import Run, load, save_model
from score_sde.run.moments import has_moments, load_moments, save_moments
from score_sde.run.saved import (
    Begun,
    KnownData,
    load_begun,
    load_config,
    load_identity,
    load_known_data,
    new_identity,
    save_config,
)
from score_sde.run.tuned import has_tuned, load_tuned, save_choice
from score_sde.run.weights import WEIGHTS, load_initial_weights, read_weights

__all__ = [
    "WEIGHTS",
    "Begun",
    "Config",
    "EditedConfig",
    "KnownData",
    "NoTuned",
    "NoWeights",
    "NotARun",
    "Run",
    "RunError",
    "TunedOtherwise",
    "UnusableMoments",
    "UnusableTuned",
    "build_data",
    "build_model",
    "build_objective",
    "build_solver",
    "data_spec",
    "has_moments",
    "has_tuned",
    "load",
    "load_begun",
    "load_config",
    "load_identity",
    "load_initial_weights",
    "load_known_data",
    "load_moments",
    "load_tuned",
    "new_identity",
    "read_weights",
    "save_choice",
    "save_config",
    "save_model",
    "save_moments",
]
