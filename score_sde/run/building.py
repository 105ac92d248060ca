"""What a config describes, built: data, model, objective, solver."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from score_sde.data import DATASETS, IMAGES, Dataset, DataSpec, image_spec
from score_sde.model import ScoreModel
from score_sde.objectives import OBJECTIVES, Objective
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS, Solver
from score_sde.tables import OptionError, as_tuples, build, check_like

Config = Mapping[str, Any]
"""A config as plain values, as ``config.json`` has it."""


def build_data(config: Config) -> Dataset:
    """The data that ``config`` names."""
    return build(DATASETS, config["data"], kind="data")


def data_spec(config: Config) -> DataSpec:
    """The description of the data that ``config`` names, without reading data that is always the same."""
    name = config["data"]["name"]
    if name not in IMAGES:
        return build_data(config).spec
    options = config["data"].get(name, {})
    return image_spec(name, **{key: as_tuples(options[key]) for key in ("dequantize", "model_range") if key in options})


def build_solver(config: Config) -> Solver:
    """The solver that ``config`` names."""
    return build(SOLVERS, config["solver"], kind="solver")


def build_objective(config: Config) -> Objective:
    """The objective that ``config`` names."""
    return build(OBJECTIVES, config["objective"], kind="objective")


def build_model(config: Config, spec: DataSpec) -> ScoreModel:
    """The model that ``config`` describes, with initial weights drawn from ``config["seed"]``."""
    from score_sde.networks import NETWORKS  # here: no other name of the package needs them

    check_like(config["seed"], 0, "seed")
    if config["seed"] < 0:
        raise OptionError(f"seed must not be negative, got {config['seed']}")
    sde = build(SDES, config["sde"], kind="sde")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        network = build(NETWORKS, config["network"], spec.shape, kind="network")
    options = {key: value for key, value in config["model"].items() if value is not None}
    known = inspect.signature(ScoreModel).parameters
    for key in set(options) & set(known):
        check_like(options[key], known[key].default, f"model.{key}")
    try:
        return ScoreModel(network, sde, spec, **options)
    except (TypeError, ValueError) as error:
        raise OptionError(f"model: {error}") from error
