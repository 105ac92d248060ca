"""The commands that draw from a run: ``sample`` and ``compare``."""

import argparse
import html
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.cli.choices import (
    chosen_solver,
    evaluations,
    likelihood_of_a_file,
    loaded_run,
    refuse_options_of_tuned,
    told_class,
)
from score_sde.comparison import Comparison, compare
from score_sde.config import ConfigError
from score_sde.files import write_npz
from score_sde.images import picture, save_png
from score_sde.report import quality_curve, sample_matrix, write_comparison_page
from score_sde.run import Run, build_data, has_tuned
from score_sde.solvers import Solver, Tuned

COMPARED = ("euler_maruyama", "ancestral", "sde_dpm_solver_pp", "pc", "ddim", "heun", "dpm_solver_pp", "unipc", "gaussian")
"""What is compared where no solvers are named; what was tuned for the run joins them."""


def sample(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = loaded_run(options, overrides)
    score, spec, name = told_class(run, options.class_), run.model.data, options.solver or config.solver.name
    solver = chosen_solver(config, options.solver, run, options.class_)
    if isinstance(solver, Tuned):
        refuse_options_of_tuned(overrides)
    if options.nfe is not None:
        solver = solver.with_budget(options.nfe)
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
    for argument in overrides:
        if argument.startswith("--config.solver.name="):
            raise ConfigError(f"{argument}: compare takes several solvers, as --solvers=pc,{argument.split('=', 1)[1]}")
    usual = [*COMPARED, "tuned"] if has_tuned(run.folder, options.class_) else COMPARED
    names = options.solvers.split(",") if options.solvers else usual
    solvers = {name: chosen_solver(config, name, run, options.class_) for name in names}
    budgets = evaluations(options.nfe)
    how = {"samples": options.n, "seed": options.seed, "progress": not options.quiet}
    result = run_comparison(run, config, solvers, budgets, class_=options.class_, **how)
    folder = run.folder / "compare"
    curves, matrix = quality_curve(result), sample_matrix(result, run.model.data.displayed)
    result.save_csv(folder / "compare.csv")
    save_png(curves, folder / "compare.png")
    save_png(matrix, folder / "samples.png")
    of_class = "" if options.class_ is None else f", class {options.class_} alone"
    source = f"Samples of <code>{html.escape(str(run.folder))}</code> (step {run.step}{of_class})"
    write_comparison_page(folder / "compare.html", result, curves, matrix, source=source)
    print(result.table())
    print(f"{result.protocol}\ntable:    {folder / 'compare.csv'}")
    print(f"pictures: {folder / 'compare.png'}, {folder / 'samples.png'}\npage:     {folder / 'compare.html'}")
    return 0


def run_comparison(
    run: Run,
    config: ConfigDict,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    *,
    samples: int,
    seed: int,
    progress: bool,
    class_: int | None = None,
) -> Comparison:
    """``compare`` against the held-out data of the run, of one class where one is given; the floor is training data's."""
    score, spec = told_class(run, class_), run.model.data
    data = build_data(config.to_dict())
    random = torch.Generator().manual_seed(seed)

    def encoded(values: Tensor, classes: Tensor | None, count: int) -> Tensor:
        if class_ is not None and classes is not None:
            values = values[classes == class_]
        values = values[:count]
        return spec.encode(values, torch.rand(values.shape, generator=random)).to(run.model.device)

    held_out = encoded(data.test, data.test_classes, 2000)
    other = encoded(data.train, data.train_classes, samples)
    return compare(score, solvers, budgets, held_out, other=other, samples=samples, seed=seed, progress=progress)
