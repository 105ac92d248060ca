"""The commands that bring models in and out: ``import`` and ``export``."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from score_sde.cli.choices import FREE_TO_CHANGE, architecture, likelihood_of_a_file
from score_sde.cli.data import locate
from score_sde.cli.effect import KEPT, refuse_sections, refuse_without_effect
from score_sde.config import ConfigError, from_saved, override, read_config
from score_sde.data import DataSpec
from score_sde.interop import import_diffusers, import_published, published_config, read_settings, to_diffusers
from score_sde.run import RunError, data_spec, load, save_model


def import_(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    if (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already: give another --workdir")
    step = 0
    if _is_run(Path(options.path)):
        raise ConfigError(f"{options.path} is a run of score_sde already: use it as it is, --workdir={quote(options.path)}")
    if options.format == "diffusers":
        if options.config or options.model_config:
            raise ConfigError("a diffusers folder has its own settings: leave --config and --model_config away")
        saved, model = import_diffusers(options.path)
        plain = _imported(saved, overrides, folder)
        model.data = _file_spec(plain, model.data)
    elif Path(options.path).is_dir():
        raise ConfigError(f"{options.path} is a folder, and checkpoints of score_sde_pytorch are files: --format=diffusers?")
    elif bool(options.config) == bool(options.model_config):
        raise ConfigError("give the model's settings: --model_config=FILE.json in that project's keys, or --config=NAME")
    elif options.config:
        config = override(read_config(options.config), overrides)
        refuse_without_effect(overrides, config, kept=KEPT)
        locate(config, folder)
        plain = config.to_dict()
        section = plain["data"][plain["data"]["name"]]
        section |= {"dequantize": True} if "dequantize" in section else {}  # as that project's likelihoods are computed
        model, step = import_published(options.path, plain, data_spec(plain))
    else:
        saved, spec = published_config(read_settings(options.model_config))
        plain = _imported(saved, overrides, folder)
        model, step = import_published(options.path, plain, _file_spec(plain, spec))
    plain["model"]["sigma_data"] = model.sigma_data
    save_model(folder, plain, model, step=step)
    low, high = model.data.model_range
    print(f"{options.path}: {architecture(plain, model)}, data of shape {model.data.shape} in [{low:g}, {high:g}]")
    print(f"next:  score-sde sample --workdir={quote(str(folder))}   or   score-sde {likelihood_of_a_file(folder)}")
    return 0


def _is_run(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and '"data_spec"' in config.read_text(errors="replace")


def _imported(saved: Mapping, overrides: list[str], folder: Path) -> dict:
    """The config of an import with what may be said about it in addition."""
    config = override(from_saved(saved), overrides)
    refuse_sections(overrides, (*FREE_TO_CHANGE, "data"), "import", "the settings of the model are given")
    refuse_without_effect(overrides, config, kept=KEPT)
    locate(config, folder)
    return config.to_dict()


def _file_spec(plain: Mapping, spec: DataSpec) -> DataSpec:
    """``spec`` with what the config's data section says of levels and range."""
    section = plain["data"].get("file", {})
    if plain["data"]["name"] != "file":
        return spec
    return dataclasses.replace(
        spec,
        levels=section["levels"] or spec.levels,
        dequantize=section["dequantize"],
        model_range=tuple(section["model_range"]),
    )


def export(options: argparse.Namespace, overrides: list[str]) -> int:
    run, target = load(options.workdir, accept_edited_config=options.accept_edited_config), Path(options.output)
    if options.format == "diffusers":
        to_diffusers(run.model, target)
        how = f"diffusers.DDPMPipeline.from_pretrained({str(target)!r})"
    else:
        save_model(target, run.config, run.model, step=run.step, moments=run.model.moments, known_data=run.known_data)
        how = f"score_sde.load({str(target)!r}), or any reader of safetensors and JSON"
    print(f"{run.folder}, step {run.step}, is exported to {target}; load it by {how}")
    return 0
