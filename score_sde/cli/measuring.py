"""The commands that draw from a run: ``sample`` and ``compare``."""

import argparse
import contextlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

import numpy as np

from score_sde.cli.choices import (
    likelihood_of_a_file,
    load_run,
    pick_clip,
    pick_solver,
    read_budgets,
    refuse_options_of_tuned,
)
from score_sde.cli.data import class_title, run_data
from score_sde.cli.effect import idle_under_budget, key_of, refuse_without_effect
from score_sde.cli.outputs import output_files, output_folder, protocol_digest, source_digest
from score_sde.config import ConfigError
from score_sde.data import Dataset
from score_sde.experiments.comparison import stand_in
from score_sde.experiments.sampling import clip_limits, clipped_data, compare_solvers, draw_samples
from score_sde.files import write_npz
from score_sde.images import picture, save_png
from score_sde.model import score_for_class
from score_sde.report import quality_curve, sample_matrix, write_comparison_page
from score_sde.run import Run, has_tuned
from score_sde.solvers import Solver, Tuned

COMPARED = ("euler_maruyama", "ancestral", "sde_dpm_solver_pp", "pc", "ddim", "heun", "dpm_solver_pp", "unipc", "gaussian")
"""What is compared where no solvers are named; what was tuned for the run joins them."""


def sample(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = load_run(options, overrides)
    if options.solver and options.solver != config.solver.name and any(key_of(o) == "solver.name" for o in overrides):
        raise ConfigError(f"--solver={options.solver} and --config.solver.name={config.solver.name} choose two: give one")
    score_for_class(run.model, options.class_)  # refused before anything is computed
    spec, name = run.model.data, options.solver or config.solver.name
    clip = pick_clip(options)
    limits = clip_limits(clipped_data(spec, clip))
    solver = pick_solver(config, options.solver, run, options.class_, limits)
    idle: dict[str, str] = {}
    if isinstance(solver, Tuned):
        refuse_options_of_tuned(overrides)
    if options.nfe is not None:
        asked, solver = solver, solver.with_budget(options.nfe)
        if substitute := stand_in(asked, solver):
            print(f"{name} cannot keep to a number of evaluations: {substitute} takes its place")
        idle = dict(idle_under_budget(name, config.solver.get(name, {}), substitute))
        name += f"_{substitute}" if substitute else ""
    refuse_without_effect(overrides, config, idle=idle)
    protocol = {"solver": repr(solver), "seed": options.seed, "n": options.n, "denoised": options.denoise}
    protocol["batch_size"] = min(options.batch_size, options.n)  # adaptive solvers may share their steps among a batch
    protocol |= {"class": options.class_, "clip": limits}
    digest = protocol_digest(run, protocol)
    marks = [f"seed{options.seed}", "denoise" if options.denoise else "", "clip" if limits else ""]
    marks += ["" if options.class_ is None else f"class{options.class_}", digest]

    def files(used: str) -> list[Path]:
        default = run.folder / "samples" / "_".join(filter(None, [name, used, *marks]))
        return output_files(options.output, default, digest, endings=(".npz", ".png"))

    files("")  # refused before anything is computed
    drawn = draw_samples(
        run,
        options.n,
        solver,
        class_=options.class_,
        denoise=options.denoise,
        clip=clip,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=not options.quiet,
    )
    x, nfe = drawn.x, drawn.nfe
    kept, shown = files(f"nfe{nfe}" if options.nfe else "")
    about = {**protocol, "nfe": nfe, "step": run.step, "protocol": digest}
    write_npz(kept, {"samples": spec.decode(x).cpu().numpy(), "about": np.array(json.dumps(about))})
    save_png(picture(spec.displayed(x[: 400 if len(spec.shape) > 1 else 5000])), shown)
    of = f" (of {options.nfe} allowed)" if options.nfe and nfe < options.nfe else ""
    print(f"{options.n} sample{'s' * (options.n > 1)} by {solver}: {nfe} evaluations each{of}, {drawn.seconds:.1f} s")
    print(f"picture: {shown}\nvalues:  {kept}")
    has_data = config.data.get(config.data.name, {}).get("path", "here")
    folder = quote(str(run.folder))
    print(f"next:    score-sde {f'compare --workdir={folder}' if has_data else likelihood_of_a_file(run.folder)}")
    return 0


def compare_(options: argparse.Namespace, overrides: list[str]) -> int:
    run, config = load_run(options, overrides)
    for argument in overrides:
        if key_of(argument) == "solver.name":
            raise ConfigError(f"{argument}: compare takes several solvers, as --solvers=pc,{argument.split('=', 1)[1]}")
    usual = [*COMPARED, "tuned"] if has_tuned(run.folder, options.class_) else COMPARED
    names = options.solvers.split(",") if options.solvers else usual
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"--solvers={options.solvers} names {', '.join(twice)} more than once: a solver has one setting")
    solvers = {name: pick_solver(config, name, run, options.class_) for name in names}
    budgets = read_budgets(options.nfe)
    idle: dict[str, str] = {}
    for name, solver in solvers.items():
        for budget in budgets:
            with contextlib.suppress(ValueError):  # too small a budget, of which compare warns
                substitute = stand_in(solver, solver.with_budget(budget))
                idle |= idle_under_budget(name, config.solver.get(name, {}), substitute)
    refuse_without_effect(overrides, config, chosen={"solver": names}, idle=idle)
    score_for_class(run.model, options.class_)  # refused before anything is computed
    data = run_data(run, config)
    samples, seed, class_ = options.n, options.seed, options.class_
    folder, digest = comparison_folder(run, data, solvers, budgets, options.output, samples=samples, seed=seed, class_=class_)
    result = compare_solvers(run, data, solvers, budgets, samples=samples, seed=seed, class_=class_, progress=not options.quiet)
    curves, matrix = quality_curve(result), sample_matrix(result, run.model.data.displayed)
    result.save_csv(folder / "compare.csv")
    save_png(curves, folder / "compare.png")
    save_png(matrix, folder / "samples.png")
    of_class = ""
    if options.class_ is not None:
        of_class = f", class {html.escape(class_title(run.known_data, options.class_))} alone"
    source = f"Samples of <code>{html.escape(str(run.folder))}</code> (step {run.step}{of_class}, protocol {digest})"
    write_comparison_page(folder / "compare.html", result, curves, matrix, source=source)
    print(result.table())
    print(f"{result.protocol}\ntable:    {folder / 'compare.csv'}")
    print(f"pictures: {folder / 'compare.png'}, {folder / 'samples.png'}\npage:     {folder / 'compare.html'}")
    return 0


def comparison_folder(
    run: Run,
    data: Dataset,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    given: str | None,
    *,
    samples: int,
    seed: int,
    class_: int | None = None,
) -> tuple[Path, str]:
    """Where a comparison is written, and the digest of its protocol; ``given`` is the user's own choice, if there is one."""
    protocol = {"solvers": [(name, repr(solver)) for name, solver in solvers.items()], "budgets": list(budgets)}
    protocol |= {"samples": samples, "seed": seed, "class": class_, "data": [*map(source_digest, (data.test, data.train))]}
    digest = protocol_digest(run, protocol)
    ends = sorted({budgets[0], budgets[-1]})
    marks = [f"nfe{'-'.join(map(str, ends))}", f"n{samples}", f"seed{seed}"]
    marks += ([] if class_ is None else [f"class{class_}"]) + [digest]
    return output_folder(given, run.folder / "compare" / "_".join(marks), digest, marked="compare.html"), digest
