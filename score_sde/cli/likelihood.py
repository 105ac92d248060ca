"""The command ``likelihood``: bits/dim with their protocol, the table of all bounds, over several processes if there are."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from score_sde.cli.choices import load_run
from score_sde.cli.data import class_title, file_data, run_data
from score_sde.cli.effect import key_of, refuse_without_effect
from score_sde.cli.outputs import data_digest, output_files, output_folder, protocol_digest
from score_sde.config import ConfigDict, ConfigError, chosen_only
from score_sde.data import DataError, DataSource, TensorSource, read
from score_sde.distributed import is_main, joined
from score_sde.experiments.likelihood import learned_dequantizer, measure_bounds, model_name, require_integers
from score_sde.likelihood import DEQUANTIZATIONS, LIKELIHOOD_SOLVERS, BitsPerDim, VariationalDequantizer, bits_per_dim
from score_sde.model import score_for_class
from score_sde.run import Run, RunError
from score_sde.tables import build, require_name


def likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    with joined():
        return _likelihood(options, overrides)


def _likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = load_run(options, overrides)
    others = [a for a in overrides if not options.data or key_of(a) != "data.file.layout"]  # which says how to read --data too
    refuse_without_effect(others, config, idle=_idle(options, config, continuous=run.model.data.levels is None))
    if options.key and not str(options.data).endswith(".npz"):
        raise ConfigError(f"--key={options.key} has no effect: it names an array of a .npz file given by --data")
    if options.data:
        if options.split:
            raise ConfigError(f"--split={options.split} has no effect: --data={options.data} takes the place of the run's data")
        source: DataSource = TensorSource(
            file_data(run, options.data, options.key or "", config.data.file.layout), run.model.data
        )
        name = f"data_{Path(options.data).stem[:40]}"
    else:
        name = options.split or "test"
        source = getattr(run_data(run, config), name)
    of = options.data or name
    name += f"_first{options.n}" if options.n and options.n < len(source) else ""
    values = read(source, slice(options.n)).values
    score_for_class(run.model, options.class_)  # refused before anything is computed
    about = {"run": str(run.folder), "step": run.step, "checkpoint": run.checkpoint.name, "data": of}
    about |= {"class": options.class_} if run.model.classes else {}
    first, progress = is_main(), not options.quiet
    name += f"_seed{options.seed}" if options.seed else ""
    name += "" if options.class_ is None else f"_class{options.class_}"
    about["protocol"] = likelihood_digest(run, config, values, seed=options.seed, class_=options.class_, bounds=options.bounds)
    name += f"_{about['protocol']}"
    if options.bounds:
        folder = output_folder(options.output, run.folder / "bounds" / name, about["protocol"], marked="continuous_time.json")
        require_integers(run)
        records = measure_bounds(
            run,
            values,
            run_dequantizer(run, config, progress=progress),
            class_=options.class_,
            likelihood=partial(bits_per_dim, **likelihood_options(config, "dequantization", "truncation", "batch_size")),
            batch_size=config.likelihood.batch_size,
            seed=options.seed,
            progress=progress,
        )
        if first:
            _show_bounds(run, records, about, folder)
        return 0
    default = run.folder / f"likelihood_{name}"
    path, _ = output_files(options.output, default, about["protocol"], endings=(".json", ".npz"))
    record = run_likelihood(
        run, config, values, class_=options.class_, seed=options.seed, keep=path.with_suffix(".parts"), progress=progress
    )
    if not first:
        return 0
    record.save(path, about)
    print(record.sentence())
    if run.model.classes:
        title = "no class" if options.class_ is None else f"class {class_title(run.known_data, options.class_)}"
        print(f"given {title}")
    if record.prior_mismatch is not None:
        print(f"mismatch between the noised data and the prior: {record.prior_mismatch:.2e} bits/dim")
    print(f"record:         {path}\neach sample's:  {path.with_suffix('.npz')}")
    return 0


def _idle(options: argparse.Namespace, config: ConfigDict, *, continuous: bool) -> dict[str, str]:
    """Options of the config that the command's own or the data make idle, and why."""
    idle: dict[str, str] = {}
    if options.bounds:
        idle |= {
            "likelihood.dequantization": "--bounds takes each dequantization in turn",
            "likelihood.truncation": "--bounds takes it with uniform dequantization",
            "likelihood.dequantizer": "",  # trained for one of them
        }
    if continuous:
        reason = "the data is continuous, and is not dequantized"
        idle |= {"likelihood.dequantization": reason, "likelihood.dequantizer": reason}
    trained = options.bounds or config.likelihood.dequantization == "variational"
    if options.data and (continuous or not trained):
        idle["data"] = f"--data={options.data} takes the place of the run's data"
    return idle


def likelihood_digest(
    run: Run, config: ConfigDict, values: torch.Tensor, *, seed: int, class_: int | None = None, bounds: bool = False
) -> str:
    """The digest of the protocol of a likelihood: of the data its content, of the options those that are in use."""
    settings = chosen_only(config.likelihood.to_dict())
    if bounds:  # which takes each of them
        del settings["dequantization"], settings["truncation"]
    elif settings["dequantization"] != "variational":
        del settings["dequantizer"]
    protocol = {"values": data_digest(values), "likelihood": settings, "seed": seed, "class": class_, "bounds": bounds}
    return protocol_digest(run, protocol)


def likelihood_options(config: ConfigDict, *left_out: str) -> dict[str, Any]:
    """The arguments of ``bits_per_dim`` that ``config.likelihood`` gives, but those that are ``left_out``."""
    settings = config.likelihood.to_dict()
    solver = build(LIKELIHOOD_SOLVERS, settings.pop("solver"), kind="likelihood.solver")
    del settings["dequantizer"]
    settings["solver"] = None if settings["target_error"] else solver
    if settings["divergence"] == "exact":
        settings["probes"] = None  # those of a config file, for other divergences
    return {name: value for name, value in settings.items() if name not in left_out}


def run_likelihood(
    run: Run,
    config: ConfigDict,
    values: torch.Tensor,
    *,
    seed: int,
    progress: bool,
    class_: int | None = None,
    keep: Path | None = None,
) -> BitsPerDim:
    """``bits_per_dim`` of ``values`` under a run's model, with the options of ``config.likelihood``."""
    settings = likelihood_options(config)
    if run.model.data.levels is None:
        del settings["dequantization"]
    else:
        require_name("likelihood.dequantization", settings["dequantization"], (*DEQUANTIZATIONS, "variational"))
        if settings["dequantization"] == "variational":
            settings["dequantization"] = run_dequantizer(run, config, progress=progress)
    score = score_for_class(run.model, class_)
    return bits_per_dim(score, values, name=model_name(run), seed=seed, keep=keep, progress=progress, **settings)


def run_dequantizer(run: Run, config: ConfigDict, *, progress: bool) -> VariationalDequantizer:
    """``learned_dequantizer`` with the options of ``config.likelihood.dequantizer``, on the run's training data."""

    def train() -> DataSource:
        try:
            return run_data(run, config).train
        except DataError as error:
            raise RunError(f"variational dequantization is trained on the training data, and there is none: {error}") from error

    return learned_dequantizer(run, train, progress=progress, **config.likelihood.dequantizer.to_dict())


def _show_bounds(run: Run, records: dict, about: dict, folder: Path) -> None:
    width = max(map(len, records))
    print(f"{'':<{width}}  bits/dim            evaluations")
    for bound, record in records.items():
        record.save(folder / f"{bound.replace(' ', '_').replace(',', '')}.json", about)
        error = "" if math.isnan(record.stderr) else f"+- {record.stderr:.4f}"
        print(f"{bound:<{width}}  {record.mean:.4f} {error:<9}  {record.nfe:>11.6g}")
    if run.model.data.dequantize:
        print("the chains and continuous time bound points at the centres of bins: loose for a model of dequantized data")
    if any(math.isnan(record.stderr) for record in records.values()):
        print("one sample: a standard error needs at least two")
    print(f"saved:  {folder}")
