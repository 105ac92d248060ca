"""The commands that draw from a run: ``sample`` and ``compare``."""

import argparse
import json

import numpy as np
import torch
from ml_collections import ConfigDict

from score_sde.cli.choices import chosen_solver, likelihood_of_a_file, loaded_run, told_class
from score_sde.comparison import compare
from score_sde.config import ConfigError
from score_sde.files import write_npz
from score_sde.images import picture, save_png
from score_sde.model import Score
from score_sde.report import comparison_table, image, paragraph, quality_curve, row, write_page
from score_sde.run import Run, build_data


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
    write_npz(stem.with_suffix(".npz"), {"samples": values, "about": np.array(json.dumps(about))})
    shown = x[: 400 if len(spec.shape) > 1 else 5000]
    save_png(picture(spec.displayed(shown)), stem.with_suffix(".png"))
    print(f"{options.n} samples by {solver}: {nfe} evaluations each, {seconds:.1f} s")
    print(f"picture: {stem.with_suffix('.png')}\nvalues:  {stem.with_suffix('.npz')}")
    has_data = config.data.get(config.data.name, {}).get("path", "here")
    print(f"next:    score-sde {f'compare --workdir={run.folder}' if has_data else likelihood_of_a_file(run.folder)}")
    return 0


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
