"""The commands that train: ``train``, and ``demo``, which goes on to measure and to compare."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from score_sde.checkpoint import latest_checkpoint
from score_sde.cli.choices import FREE_TO_CHANGE, architecture, load_run, pick_device, pick_solver
from score_sde.cli.data import class_list, data_of, locate, run_data
from score_sde.cli.effect import KEPT, key_of, refuse_without_effect
from score_sde.cli.likelihood import likelihood_digest, run_likelihood
from score_sde.cli.measuring import comparison_folder
from score_sde.config import ConfigDict, ConfigError, chosen_only, config_names, flat, from_saved, override, read_config
from score_sde.data import Dataset, DataSpec, read
from score_sde.demo import write_demo_report
from score_sde.experiments.sampling import compare_solvers
from score_sde.lock import sole_writer
from score_sde.run import (
    WEIGHTS,
    RunError,
    build_solver,
    load_config,
    load_known_data,
)
from score_sde.training import about_earlier, prepare, write_run


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and a run is a folder: give another --workdir")
    with sole_writer(folder):
        return _train(options, overrides)


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    folder, edited = Path(options.workdir), options.accept_edited_config
    resumed = latest_checkpoint(folder / "checkpoints") is not None
    imported = not resumed and (folder / WEIGHTS).exists()
    if (resumed or imported) and not (folder / "config.json").exists():
        raise RunError(
            f"{folder} has weights, but no config.json that says of what model: restore it, or give another --workdir"
        )
    if resumed or imported:
        config = _continued(folder, options.config, overrides, imported, edited)
    elif options.config:
        config = override(read_config(options.config), overrides)
    elif (folder / "config.json").exists():
        config = override(from_saved(load_config(folder, accept_edited_config=edited)[0]), overrides)
    else:
        raise RunError(f"{folder} is not a run yet: give a config, --config={config_names()[0]} for example")
    refuse_without_effect(overrides, config, kept=KEPT)
    device = pick_device(options.device)
    data = data_of(config, folder)
    refuse_without_effect(overrides, config, idle=_idle_of_continuous(config, data.spec), kept=KEPT)
    plain = config.to_dict()
    build_solver(plain)
    trainer, known = prepare(folder, plain, data, device=device, accept_edited_config=edited)
    state, data, steps = trainer.state, trainer.data, trainer.options.steps
    if resumed:
        saved = from_saved(load_config(folder, accept_edited_config=edited)[0]).to_dict()
        _refuse_idle_training(folder, state.step, plain, saved)
    write_run(trainer, plain, known)
    print(_summary(config, data, state.model, device))
    if state.step:
        print(f"continuing {folder} from step {state.step} of {steps}")
        if earlier := about_earlier(folder, accept_edited_config=edited):
            print(earlier)
    stopped = trainer.train(progress=not options.quiet)
    quoted = quote(str(folder))
    if stopped:
        print(f"to go on:  score-sde train --workdir={quoted}")
        return 128 + stopped
    drawn = any((folder / "samples").glob("step_*.png"))
    pictures = f"; its pictures are in {folder / 'samples'}" if drawn else ""
    print(f"{folder} is trained for {state.step} steps{pictures}")
    print(f"next:  score-sde sample --workdir={quoted}   or   score-sde likelihood --workdir={quoted}")
    return 0


def _idle_of_continuous(config: ConfigDict, spec: DataSpec) -> dict[str, str]:
    """Options of the data that are for integers, where it is continuous."""
    reason = "" if spec.levels else "the data is continuous, and this is for integers"
    return {f"data.{config.data.name}.{option}": reason for option in ("dequantize", "model_range")}


def _refuse_idle_training(folder: Path, step: int, config: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse fewer steps than a run has behind it, and changes of how it is trained when no step is left."""
    steps = config["training"]["steps"]
    if step > steps:
        raise ConfigError(
            f"{folder} is trained for {step} steps already, and training.steps is {steps}: nothing was changed; "
            "give more steps, or another --workdir"
        )
    for section in ("objective", "training"):
        now, then = (flat(plain[section], f"{section}.") for plain in (config, before))
        changed = next((key for key in now if now[key] != then.get(key)), None)
        if changed and step == steps:
            raise ConfigError(
                f"{changed} has no effect: {folder} is trained for all of its {step} steps; give more, "
                f"--config.training.steps={2 * step} for example"
            )


def _continued(folder: Path, source: str | None, overrides: list[str], imported: bool, edited: bool) -> ConfigDict:
    """The config of a run that exists, with what may change in it changed: of an imported one, also what it is trained on."""
    free = (*FREE_TO_CHANGE, "data", "seed") if imported else FREE_TO_CHANGE
    saved = from_saved(load_config(folder, accept_edited_config=edited)[0])
    config = override(read_config(source) if source else from_saved(saved.to_dict()), overrides)
    if config.model.sigma_data is None:
        config.model.sigma_data = saved.model.sigma_data
    for either in (saved, config):
        locate(either, folder)
    before, after = chosen_only(saved.to_dict()), chosen_only(config.to_dict())
    moved = load_known_data(
        folder, accept_edited_config=edited
    ).fingerprint  # data may lie elsewhere, where it is known to be the same
    for plain in (before, after):
        plain["network"][plain["network"]["name"]].pop("recompute", None)  # how the network is computed, not what
        if moved:
            plain["data"][plain["data"]["name"]].pop("path", None)
    differing = [key for key in before if key not in free and json.dumps(before[key]) != json.dumps(after[key])]
    if differing:
        raise ConfigError(
            f"{folder} was trained with another {', '.join(differing)}; only {', '.join(free)} may change when a "
            "run is continued: leave --config away to continue it, or give another --workdir"
        )
    return config


def _summary(config: ConfigDict, data: Dataset, model: torch.nn.Module, device: torch.device) -> str:
    spec = data.spec
    kind = f"{spec.levels} levels" if spec.levels else "continuous"
    if len(spec.shape) == 2 and config.network.name == "unet":
        kind += f", taken as signals of {spec.shape[0]} channels (images need a channel: (1, {spec.shape[0]}, {spec.shape[1]}))"
    classes = class_list(data)
    return (
        f"{config.data.name}: {len(data.train)} training and {len(data.test)} test samples of shape {spec.shape}, {kind}\n"
        + (f"{classes}\n" if classes else "")
        + f"{architecture(config, model)}, on {device.type}"
    )


def _data_of(folder: Path, options: argparse.Namespace) -> str:
    return load_config(folder, accept_edited_config=options.accept_edited_config)[0]["data"]["name"]


def demo(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    for argument in overrides:
        if key_of(argument) == "data.name" and not argument.endswith("=digits"):
            raise ConfigError(f"{argument}: the demo is of digits; train on other data with score-sde train")
    if (folder / "config.json").exists() and _data_of(folder, options) != "digits":
        raise RunError(f"{folder} is a run on other data; the demo needs a directory of its own, --workdir=runs/demo")
    trained = argparse.Namespace(**{**vars(options), "config": None if (folder / "config.json").exists() else "digits_vp"})
    code = train(trained, overrides)
    if code:
        return code
    run, config = load_run(options, [])
    print("computing the test bits/dim ...")
    data = run_data(run, config)
    test = read(data.test, slice(None)).values
    record = run_likelihood(run, config, test, seed=0, progress=not options.quiet)
    digest = likelihood_digest(run, config, test, seed=0)
    about = {"run": str(folder), "step": run.step, "checkpoint": run.checkpoint.name, "data": "test", "protocol": digest}
    record.save(folder / f"likelihood_test_{digest}.json", about)
    print(record.sentence())
    solvers = {name: pick_solver(config, name, run) for name in ("euler_maruyama", "pc", "ddim", "unipc", "gaussian")}
    print("comparing the solvers ...")
    budgets, samples, seed = [5, 10, 20, 50], 128, 0
    result = compare_solvers(run, data, solvers, budgets, samples=samples, seed=seed, progress=not options.quiet)
    compared, _ = comparison_folder(run, data, solvers, budgets, None, samples=samples, seed=seed)
    result.save_csv(compared / "compare.csv")
    print(result.table())
    page = folder / "report.html"
    write_demo_report(page, run, data, record, result)
    print(f"report: {page}   (open it in a browser)")
    return 0
