"""The config in which nothing was chosen yet: every option of everything, from the signatures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict

from score_sde.data import DATASETS
from score_sde.experiments.likelihood import learned_dequantizer
from score_sde.likelihood import LIKELIHOOD_SOLVERS, bits_per_dim
from score_sde.model import ScoreModel
from score_sde.networks import NETWORKS
from score_sde.objectives import OBJECTIVES
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS
from score_sde.tables import options_of, section
from score_sde.training import TrainingOptions

if TYPE_CHECKING:

    class ConfigDict(Any):
        """A config to type checkers: an option is of any type. In the stubs it is of all types at once, and has no use."""

else:
    from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A config cannot be read, or an override does not fit it; the message says which and what is allowed."""


def default_config() -> ConfigDict:
    """The defaults of everything. ``model.sigma_data`` is left open: it is then measured on the training data."""
    model = options_of(ScoreModel, "network", "sde", "data")
    model["sigma_data"] = config_dict.placeholder(float)
    likelihood = options_of(bits_per_dim, "levels", "data", "cond", "seed", "name", "keep", "progress")
    likelihood |= {
        "target_error": config_dict.placeholder(float),
        "probes": config_dict.placeholder(int),
        "solver": section(LIKELIHOOD_SOLVERS, "dual_weighted"),
    }
    likelihood["dequantizer"] = options_of(learned_dequantizer, "progress")
    config = {
        "seed": 0,
        "data": section(DATASETS, "digits"),
        "sde": section(SDES, "vp"),
        "network": section(NETWORKS, "unet", "shape"),
        "model": model,
        "objective": section(OBJECTIVES, "denoising"),
        "training": options_of(TrainingOptions),
        "solver": section(SOLVERS, "euler_maruyama"),
        "likelihood": likelihood,
    }
    return ConfigDict(config).lock()


def chosen_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config without the sections of what was not chosen, for reading."""
    brief: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and "name" in value:
            value = {"name": value["name"], value["name"]: value.get(value["name"], {})}
        brief[key] = chosen_only(value) if isinstance(value, Mapping) else value
    return brief


def flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every option of a config by its whole key, such as ``sde.vp.beta_max``."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, ConfigDict | Mapping)
        options |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return options
