"""The command that chooses solvers by measurement: ``tune``."""

import argparse
from pathlib import Path
from shlex import quote

from score_sde.cli.choices import evaluations, loaded_run, score_for_class
from score_sde.cli.data import class_option
from score_sde.cli.outputs import require_writable
from score_sde.config import ConfigError
from score_sde.experiments.tuning import tune
from score_sde.run import has_tuned, load_tuned, save_choice
from score_sde.solvers.tuned import Choice


def tune_(options: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise ConfigError(f"{overrides[0]}: tune tries solvers of its own, and takes no options of theirs")
    run, _ = loaded_run(options, overrides, ())
    folder = Path(options.output) if options.output else run.folder
    require_writable(folder)
    earlier = load_tuned(folder, class_=options.class_) if has_tuned(folder, options.class_) else None
    how = {"pilot": options.pilot, "trials": options.trials, "seed": options.seed}
    score, identity = score_for_class(run, options.class_), {"run": run.identity} if run.identity else {}

    def keep(choice: Choice) -> None:
        save_choice(folder, choice, {**how, "class": options.class_, "step": run.step, **identity})

    budgets, of_class = evaluations(options.nfe), class_option(run.known_data, options.class_)
    tuned = tune(score, run.model.data.shape, budgets, **how, earlier=earlier, keep=keep, progress=not options.quiet)
    print(tuned.table())
    print(
        f"errors: root mean square distance of a sample from the converged ODE, on {options.pilot} latents that had no part in "
        "the search;\n        what was found took the place of the best standard only where its gain is significant on these\n"
        f"saved:  {folder / 'tuned.json'}"
    )
    use = f"score-sde sample --workdir={quote(str(run.folder))} --solver=tuned --nfe={tuned.choices[-1].nfe}{of_class}"
    print(f"next:   copy it into {run.folder}, where --solver=tuned finds it" if options.output else f"next:   {use}")
    return 0
