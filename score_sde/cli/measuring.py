"""The commands that use a run: ``sample``, ``likelihood`` and ``compare``."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_sde.cli.choices import chosen_solver, likelihood_of_a_file, loaded_run, told_class
from score_sde.comparison import compare
from score_sde.config import ConfigError
from score_sde.data import load_array
from score_sde.files import write_atomically
from score_sde.images import picture, save_png
from score_sde.likelihood import (
    DEQUANTIZATIONS,
    VARIANCES,
    BitsPerDim,
    bits_per_dim,
    continuous_bound,
    discrete_bound,
)
from score_sde.model import Score
from score_sde.report import comparison_table, image, paragraph, quality_curve, row, write_page
from score_sde.run import Run, RunError, build_data
from score_sde.solvers import ProbabilityFlow


def sample(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = loaded_run(options, overrides)
    solver = chosen_solver(config, options.solver)
    if options.nfe is not None:
        solver = solver.with_budget(options.nfe)
    score, spec, name = told_class(run, options.class_), run.model.data, config.solver.name
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
    print(f"next:    score-sde {f'compare --workdir={run.folder}' if has_data else likelihood_of_a_file(run.folder)}")
    return 0


def likelihood(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = loaded_run(options, overrides)
    if options.data:
        values, name = load_array(options.data, options.key), f"data_{Path(options.data).stem}"
        shape, sides = run.model.data.shape, [side for side in values.shape[1:] if side > 1]
        if sides == [side for side in shape if side > 1] or sides == [run.model.data.dim]:  # no channel given, or flat
            values = values.reshape(-1, *shape)
        run.model.data.check(values, options.data)
    else:
        values, name = getattr(build_data(config.to_dict()), options.split), options.split
    values = values[: options.n]
    score = told_class(run, options.class_)
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
    run, config = loaded_run(options, overrides)
    solvers = {name: chosen_solver(config, name) for name in options.solvers.split(",")}
    try:
        budgets = sorted({int(nfe) for nfe in options.nfe.split(",")})
    except ValueError:
        raise ConfigError(f"--nfe takes numbers of evaluations separated by commas, got {options.nfe!r}") from None
    how = {"samples": options.n, "seed": options.seed, "progress": not options.quiet}
    result = run_comparison(run, config, solvers, budgets, score=told_class(run, options.class_), **how)
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
