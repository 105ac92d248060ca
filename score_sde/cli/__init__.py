"""The command ``score-sde``: every subcommand is a few lines on top of the library.

A mistake of the user ends in one sentence on standard error and exit code 2. The parser knows the options of every command, and
where its function is; a command's module, and torch with it, is imported when the command line is sound.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from score_sde.cli.parser import build_parser, split_overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    arguments, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter of a path is shown its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments, overrides)
        except SystemExit:  # of --help
            print(end="", flush=True)
            raise
    except BrokenPipeError:  # whoever reads has seen enough, as in score-sde list | head -1
        _forget_output()
        return 141


def _run(arguments: list[str], overrides: list[str]) -> int:
    options = build_parser().parse(arguments)
    module, _, function = options.run.partition(":")
    command = getattr(import_module(module), function)
    from score_sde.cli.effect import refuse_repeated
    from score_sde.cli.hints import hint
    from score_sde.config import ConfigError, default_config, in_full
    from score_sde.distributed import require_one_process
    from score_sde.solvers import SolverError
    from score_sde.tensors import ran_out_of_memory
    from score_sde.training import TrainingError

    try:
        if overrides and not options.configured:
            raise ConfigError(f"score-sde {options.command} takes no --config. options")
        overrides = in_full(overrides, default_config()) if overrides else []
        refuse_repeated(overrides)
        if options.command in ("train", "demo", "sample", "compare", "tune", "import", "export"):
            require_one_process(f"score-sde {options.command}")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {message}{hint(message, options)}", file=sys.stderr
            )
            code = command(options, overrides) or 0
            print(end="", flush=True)  # a closed pipe, or a full disk behind it, is met here
            return code
    except BrokenPipeError:
        raise
    except (ValueError, OSError, SolverError, TrainingError) as error:
        if options.traceback:
            raise
        print(f"score-sde: {_sentence(error)}{hint(error, options)}", file=sys.stderr)
        if isinstance(error, OSError):
            _forget_output()  # it may be what cannot be written
        return 2
    except (RuntimeError, MemoryError) as error:
        if options.traceback or not ran_out_of_memory(error):
            raise
        smaller = {"sample": "--batch_size", "compare": "--count", "tune": "--pilot"}
        option = smaller.get(options.command, "batch_size")
        print(f"score-sde: out of memory; use a smaller {option}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if options.command == "likelihood" and not options.bounds else ""
        print(f"score-sde: stopped{again}", file=sys.stderr)
        return 130


def _sentence(error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder, where a file is expected: move it away"
    return " ".join(str(error).split())


def _forget_output() -> None:
    """Send what cannot be printed nowhere: Python would try again at its end."""
    try:
        print(end="", flush=True)
        return
    except OSError:
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
