"""The command ``score-sde``: every subcommand is a few lines on top of the library.

A mistake of the user ends in one sentence on standard error and exit code 2.
"""

import sys
import warnings
from collections.abc import Sequence

from score_sde.cli.parser import build_parser
from score_sde.config import ConfigError
from score_sde.solvers import SolverError
from score_sde.tensors import ran_out_of_memory
from score_sde.trainer import TrainingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    overrides = [a for a in arguments if a.startswith(("--config.", "-config."))]
    options = build_parser().parse_args([a for a in arguments if a not in overrides])
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
    except (RuntimeError, MemoryError) as error:
        if options.traceback or not ran_out_of_memory(error):
            raise
        smaller = {"sample": "--batch_size", "compare": "--n", "tune": "--pilot"}
        option = smaller.get(options.command, "batch_size")
        print(f"score-sde: out of memory; use a smaller {option}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if options.command == "likelihood" and not options.bounds else ""
        print(f"score-sde: stopped{again}", file=sys.stderr)
        return 130
