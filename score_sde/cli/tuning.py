"""The command that chooses solvers by measurement: ``tune``."""

import argparse
from pathlib import Path
from shlex import quote

from score_sde.cli.choices import load_run, pick_clip, read_budgets
from score_sde.cli.data import class_option, clip_option
from score_sde.cli.outputs import require_writable
from score_sde.config import ConfigError
from score_sde.experiments.sampling import tune_solvers


def tune_(options: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise ConfigError(f"{overrides[0]}: tune tries solvers of its own, and takes no options of theirs")
    run, _ = load_run(options, overrides)
    folder = Path(options.output) if options.output else run.folder
    require_writable(folder)
    tuned = tune_solvers(
        run,
        read_budgets(options.nfe),
        folder=folder,
        class_=options.class_,
        clip=pick_clip(options),
        pilot=options.pilot,
        trials=options.trials,
        seed=options.seed,
        progress=not options.quiet,
    )
    print(tuned.table())
    print(
        f"errors: root mean square distance of a sample from the converged ODE, on {options.pilot} latents that had no part in "
        "the search;\n        what was found took the place of the best standard only where its gain is significant on these\n"
        f"saved:  {folder / 'tuned.json'}"
    )
    use = f"score-sde sample --workdir={quote(str(run.folder))} --solver=tuned --nfe={tuned.choices[-1].nfe}"
    use += class_option(run.known_data, options.class_) + clip_option(options.clip)
    print(f"next:   copy it into {run.folder}, where --solver=tuned finds it" if options.output else f"next:   {use}")
    return 0
