"""The command ``likelihood``: bits/dim with their protocol, the table of all bounds, over several processes if there are."""

import argparse
import json
import os
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_sde.checkpoint import load_weights
from score_sde.cli.choices import loaded_run, told_class
from score_sde.config import ConfigError
from score_sde.data import DataError, load_array
from score_sde.data.layout import arranged
from score_sde.files import DamagedError, read_metadata, write_safetensors
from score_sde.likelihood import (
    DEQUANTIZATIONS,
    LIKELIHOOD_SOLVERS,
    VARIANCES,
    BitsPerDim,
    VariationalDequantizer,
    bits_per_dim,
    continuous_bound,
    discrete_bound,
    fit_dequantizer,
)
from score_sde.likelihood.evaluation import ranks_of_this_run, weights_digest
from score_sde.model import Score
from score_sde.run import Run, RunError, build_data, chosen, read_weights


def likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if processes > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # what is exchanged are results, on the CPU
    try:
        return _likelihood(options, overrides)
    finally:
        if processes > 1:
            torch.distributed.destroy_process_group()


def _likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = loaded_run(options, overrides)
    if options.data:
        values, name = load_array(options.data, options.key), f"data_{Path(options.data).stem}"
        spec = run.model.data
        if values[0].numel() == spec.dim and len(spec.shape) > 1:
            values = arranged(values, options.data, shape=spec.shape, layout=config.data.file.layout)
        spec.check(values, options.data)
    else:
        values, name = getattr(build_data(config.to_dict()), options.split), options.split
    values = values[: options.n]
    how = {"score": told_class(run, options.class_), "seed": options.seed, "progress": not options.quiet}
    about = {"run": str(run.folder), "step": run.step, "checkpoint": run.checkpoint.name, "data": options.data or options.split}
    about |= {"class": options.class_} if run.model.classes else {}
    first = ranks_of_this_run()[0] == 0
    if options.bounds:
        records = run_bounds(run, config, values, **how)
        if first:
            _show_bounds(run, records, about)
        return 0
    name += f"_first{options.n}" if options.n else ""
    name += f"_seed{options.seed}" if options.seed else ""
    name += "" if options.class_ is None else f"_class{options.class_}"
    path = run.folder / f"likelihood_{name}.json"
    record = run_likelihood(run, config, values, keep=path.with_suffix(".parts"), **how)
    if not first:
        return 0
    record.save(path, **about)
    print(record.sentence())
    if run.model.classes:
        print("given no class" if options.class_ is None else f"given class {options.class_}")
    if record.prior_mismatch is not None:
        print(f"mismatch between the noised data and the prior: {record.prior_mismatch:.2e} bits/dim")
    print(f"record:         {path}\neach sample's:  {path.with_suffix('.npz')}")
    return 0


def run_likelihood(
    run: Run,
    config: ConfigDict,
    values: torch.Tensor,
    *,
    seed: int,
    progress: bool,
    score: Score | None = None,
    keep: Path | None = None,
) -> BitsPerDim:
    """``bits_per_dim`` with the options of ``config.likelihood``; ``score`` is the run's model unless another is given."""
    settings = config.likelihood.to_dict()
    solver = chosen(LIKELIHOOD_SOLVERS, settings.pop("solver"), kind="likelihood.solver")
    del settings["dequantizer"]
    if run.model.data.levels is None:
        settings["dequantization"] = "uniform"  # continuous data has none
    known = (*DEQUANTIZATIONS, "variational")
    if settings["dequantization"] not in known:
        raise ConfigError(f"unknown likelihood.dequantization {settings['dequantization']!r}; choose one of {', '.join(known)}")
    if settings["dequantization"] == "variational":
        settings["dequantization"] = run_dequantizer(run, config, progress=progress)
    return bits_per_dim(
        score or run.model,
        values,
        solver=None if settings["target_error"] else solver,
        seed=seed,
        moments=run.model.moments,
        name=f"averaged weights of step {run.step}",
        keep=keep,
        progress=progress,
        **settings,
    )


def run_dequantizer(run: Run, config: ConfigDict, *, progress: bool) -> VariationalDequantizer:
    """The run's variational dequantizer: of ``dequantizer.safetensors``, or trained now on the training data."""
    path, options = run.folder / "dequantizer.safetensors", config.likelihood.dequantizer.to_dict()
    made = {"weights": str(weights_digest(run.model)), "options": json.dumps(options)}
    rank, ranks = ranks_of_this_run()
    dequantizer = VariationalDequantizer(run.model.data, **{name: options[name] for name in ("couplings", "width")})
    if _made(path) != made and rank == 0:  # it is not there, damaged, of another checkpoint, or trained otherwise
        _train_dequantizer(run, config, path, made, progress=progress)
    if ranks > 1:
        torch.distributed.barrier()
    load_weights(dequantizer, read_weights(path, "cpu")[0], path)
    return dequantizer.to(run.model.device).eval().requires_grad_(False)


def _made(path: Path) -> dict[str, str] | None:
    """For which weights a dequantizer was trained, and how; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        return read_metadata(path)
    except DamagedError as error:
        warnings.warn(f"{error}: it is trained anew", stacklevel=2)
        return None


def _train_dequantizer(run: Run, config: ConfigDict, path: Path, made: dict[str, str], *, progress: bool) -> None:
    try:
        train = build_data(config.to_dict()).train
    except DataError as error:
        raise RunError(f"variational dequantization is trained on the training data, and there is none: {error}") from error
    fitted = fit_dequantizer(run.model, train, progress=progress, **json.loads(made["options"]))
    write_safetensors(path, fitted.state_dict(), made)


def run_bounds(run: Run, config: ConfigDict, values: torch.Tensor, *, score: Score, seed: int, progress: bool) -> dict:
    """The likelihood of integers with each dequantization, and the variational bounds: name -> record."""
    if run.model.data.levels is None:
        raise RunError("the bounds are on probabilities of integers, and the data of this run is continuous")
    records: dict = {}
    for name, truncation in (("uniform", False), ("uniform", True), ("truncated_normal", False), ("variational", False)):
        config.likelihood.dequantization, config.likelihood.truncation = name, truncation
        how = f"ODE, {name.replace('_', ' ')}" + (", truncation" if truncation else "")
        records[how] = run_likelihood(run, config, values, score=score, seed=seed, progress=progress)
    shared = {"seed": seed, "batch_size": config.likelihood.batch_size, "progress": progress}
    steps = len(getattr(run.model.sde, "betas", range(1000)))
    variances = [name for name in VARIANCES if name != "learned" or run.model.learned_variance]
    for variance in variances:
        bound = discrete_bound(score, values, steps=steps, variance=variance, sampled_steps=min(100, steps - 1), **shared)
        records[f"chain of {steps} steps, {variance}"] = bound
    records["continuous time"] = continuous_bound(score, values, times=100, **shared)
    return records


def _show_bounds(run: Run, records: dict, about: dict) -> None:
    width = max(map(len, records))
    print(f"{'':<{width}}  bits/dim            evaluations")
    for bound, record in records.items():
        record.save(run.folder / "bounds" / f"{bound.replace(' ', '_').replace(',', '')}.json", **about)
        print(f"{bound:<{width}}  {record.mean:.4f} +- {record.stderr:.4f}  {record.nfe:>11.6g}")
    if run.model.data.dequantize:
        print("the chains and continuous time bound points at the centres of bins: loose for a model of dequantized data")
    print(f"saved:  {run.folder / 'bounds'}")
