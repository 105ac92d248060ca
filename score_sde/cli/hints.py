"""What to type after a mistake: the library says what is wrong, this says which command or option mends it."""

import argparse
from pathlib import Path
from shlex import quote

from score_sde.cli.data import class_option, clip_option
from score_sde.data import DataError, DataWarning
from score_sde.experiments.sampling import UnknownRange
from score_sde.model import ClassNeeded
from score_sde.run import (
    EditedConfig,
    NotARun,
    NoTuned,
    NoWeights,
    TunedOtherwise,
    UnusableMoments,
    UnusableTuned,
    load_known_data,
)
from score_sde.solvers.tuned import NoChoice


def hint(error: Exception | str, options: argparse.Namespace) -> str:
    """What follows the message of ``error``, or of a warning; nothing where there is nothing to add."""
    folder = Path(getattr(error, "folder", getattr(options, "workdir", None) or "."))
    train, tune = (f"score-sde {name} --workdir={quote(str(folder))}" for name in ("train", "tune"))
    if isinstance(class_ := getattr(options, "class_", None), int) and (folder / "config.json").is_file():
        tune += class_option(load_known_data(folder, accept_edited_config=True), class_)
    tune += clip_option(getattr(options, "clip", None))
    match error:
        case UnknownRange():
            return ", --clip=LOW,HIGH"
        case ClassNeeded():
            return f":{class_option(load_known_data(folder, accept_edited_config=True), 0)}, or another"
        case NotARun():
            return f"; train one with {train}"
        case NoWeights():
            return f": train it with {train}"
        case EditedConfig():
            return "; --accept_edited_config takes it as it is"
        case UnusableMoments():
            return f"; {train} makes them anew"
        case UnusableTuned():
            return f"; {tune} makes it anew"
        case NoTuned():
            return f": {tune}"
        case NoChoice():
            return f": {tune} --nfe={error.nfe} adds them"
        case TunedOtherwise():
            return f": {tune} --nfe={','.join(map(str, error.budgets))}"
        case DataError(remedy=(option, value)) | DataWarning(remedy=(option, value)):
            of_likelihood = option == "file.key" and getattr(options, "data", None)
            return f" (--{'key' if of_likelihood else f'config.data.{option}'}={quote(value)})"
    return ""
