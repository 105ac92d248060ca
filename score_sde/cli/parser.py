"""The command line: every command, its options, and what a mistake is answered with.

Nothing that imports torch is imported here, so that help, the version and a mistyped command come at once.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from score_sde.tables import did_you_mean, nearest

CONFIGURED = {
    "train": {name: f"training.{name}" for name in ("steps", "batch_size", "learning_rate")}
    | {name: name for name in ("seed", "data", "sde", "network", "objective")},
    "likelihood": {name: f"likelihood.{name}" for name in ("solver", "divergence", "probes", "batch_size", "target_error")},
}
"""Command -> word that is often taken for an option of it -> the key of the config that it means."""


SECTIONS = ("seed", "data", "sde", "network", "model", "objective", "training", "solver", "likelihood")
"""The sections of a config."""


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of the command itself, and the ``--config.key=value`` ones; a value may follow ``=`` or a blank."""
    own: list[str] = []
    overrides: list[str] = []
    waiting = False  # for the value of the last override
    for argument in arguments:
        if argument.startswith(("--config.", "-config.")):
            overrides.append(argument)
            waiting = "=" not in argument
        elif waiting and re.match(r"[^-]|-[\d.]|$", argument):
            overrides[-1] += f"={argument}"
            waiting = False
        else:
            own.append(argument)
            waiting = False
    return own, overrides


def _positive(text: str) -> int:
    """A number of things as it is given on the command line."""
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"a positive integer is needed, got {text!r}")
    return int(text)


def _text(text: str) -> str:
    """A name or a path: an empty one, as an unset variable of a shell gives it, is not the same as none."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave the option away")
    return text


def _natural(text: str) -> int:
    """A seed or an index as it is given on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"an integer that is not negative is needed, got {text!r}")
    return int(text)


def _ends(text: str) -> tuple[float, float]:
    """A range as it is given on the command line."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"a smallest and a largest value are needed, as 0,1, got {text!r}")
    return low, high


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help that tells each default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        untold = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        told = not untold and "default" not in (action.help or "")
        return f"{action.help}; by default %(default)s" if told else action.help


class _Version(argparse.Action):
    """Print the version: it is looked up when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        import score_sde

        print(f"score_sde {score_sde.__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if "unrecognized arguments" in message:
            given = message.split(":", 1)[1].split()[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            configured = CONFIGURED.get(self.prog.split()[-1], {})
            meant = nearest(given, [*known, *configured])
            meant = f"--config.{configured[meant]}=VALUE" if meant in configured else meant
            message = f"unknown option {given}{f', did you mean {meant}?' if meant else ''}"
        elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        print(f"{self.prog}: {message}; {self.prog} --help shows what it takes", file=sys.stderr)
        raise SystemExit(2)

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """The options of a command line.

        Sub-parsers hand what they do not know back to this one, whose options are others: it is reported as theirs.
        """
        parsed, unknown = self.parse_known_args(args)
        command = self.commands()[parsed.command]
        command.refuse_repeated(args)
        if unknown:
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def commands(self) -> dict[str, "_Parser"]:
        """The parser of each command."""
        (choices,) = (action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return choices

    def refuse_repeated(self, args: Sequence[str]) -> None:
        """An option that is given twice has one value that is not used."""
        given = [argument.split("=")[0] for argument in args]
        for action in self._actions:
            if sum(given.count(option) for option in action.option_strings) > 1:
                self.error(f"{'/'.join(action.option_strings)} is given more than once")


def _accept_edited(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--accept_edited_config", action="store_true", help="take the run's config.json although it was edited by hand"
    )


def build_parser() -> _Parser:
    parser = _Parser(prog="score-sde", description="Score-based generative models in continuous time.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        function: str,
        description: str,
        *examples: str,
        workdir: bool = True,
        runs: bool = True,
        configured: bool = True,
        sections: Sequence[str] = SECTIONS,
    ) -> argparse.ArgumentParser:
        """A command that ``function`` of a module of this package runs; it reads these ``sections`` of the config."""
        shown = "\n".join(["examples:", *(f"  score-sde {name} {example}".rstrip() for example in examples)])
        sub = commands.add_parser(
            name, help=description, description=description, epilog=shown, formatter_class=_Help, allow_abbrev=False
        )
        sub.set_defaults(run=f"score_sde.cli.{function}", configured=configured, sections=sections if configured else ())
        sub.add_argument("--traceback", action="store_true", help="show where an error comes from")
        if workdir:
            sub.add_argument("--workdir", type=_text, required=True, help="the run directory")
            _accept_edited(sub)
        if workdir and runs:
            sub.add_argument("--device", type=_text, help="cpu, cuda, ...; by default a GPU where there is one")
            sub.add_argument("--quiet", action="store_true", help="no progress")
        return sub

    def count(sub: argparse.ArgumentParser, help: str, default: int | None = None) -> None:
        # torchrun reads the command line first, and takes --n for an abbreviation of its own --nnodes
        sub.add_argument("--count", "--n", dest="n", type=_positive, default=default, metavar="N", help=help)

    def output(sub: argparse.ArgumentParser, what: str) -> None:
        sub.add_argument("--output", type=_text, help=f"{what}; by default in the run")

    def seed(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=_natural, default=0, help="of all random numbers")

    def clip(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--clip",
            nargs="?",
            type=_ends,
            const=(),
            metavar="LOW,HIGH",
            help="clip x0 at every evaluation, to the range of the data or to --clip=LOW,HIGH in its units",
        )

    def of_class(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--class",
            type=_text,
            dest="class_",
            metavar="NAME",
            help="of this class alone, by its name or its number from 0 on; by default of all",
        )

    sub = command(
        "train",
        "training:train",
        "train a model, or continue where a run stopped",
        "--workdir=runs/moons --config=two_moons",
        "--workdir=runs/moons --config.training.steps=20000",
    )
    sub.add_argument(
        "--config",
        type=_text,
        help="name or path of a config file; by default that of the run; change a value by --config.section.key=value",
    )

    sub = command(
        "sample",
        "measuring:sample",
        "draw samples as a picture and an .npz",
        "--workdir=runs/moons --solver=unipc --nfe=10 --count=500",
        sections=("solver",),
    )
    sub.add_argument(
        "--solver",
        type=_text,
        help="a solver that score-sde list shows, or tuned; by default the config's; options by "
        "--config.solver.NAME.option=value",
    )
    sub.add_argument("--nfe", type=_positive, help="network evaluations; by default as many as the solver's own steps need")
    count(sub, "number of samples", 64)
    seed(sub)
    sub.add_argument("--batch_size", type=_positive, default=256, help="samples at a time")
    of_class(sub)
    sub.add_argument("--denoise", action="store_true", help="end with the posterior mean, at one more evaluation")
    clip(sub)
    output(sub, "the .npz to write, and a .png beside it")

    sub = command(
        "likelihood",
        "likelihood:likelihood",
        "compute bits/dim with its standard error and protocol",
        "--workdir=runs/digits",
        "--workdir=runs/digits --data=new_digits.npy --count=100",
        sections=("likelihood", "data"),
    )
    sub.add_argument("--split", choices=("test", "train"), help="which part of the run's data; by default test")
    sub.add_argument("--data", type=_text, help="a .npy or .npz file; by default the run's own data")
    sub.add_argument("--key", type=_text, help="the array in a .npz that holds several")
    count(sub, "only the first N samples; by default all")
    seed(sub)
    sub.add_argument("--bounds", action="store_true", help="a table of all bounds on the bits/dim of integers")
    of_class(sub)
    output(sub, "the .json to write, and a .npz beside it; with --bounds a folder")

    sub = command(
        "import",
        "models:import_",
        "make a run of a model that was trained elsewhere",
        "--workdir=runs/church --format=diffusers ddpm-church-256",
        "--workdir=runs/cifar10 --config=cifar10_ve checkpoint_26.pth",
        runs=False,
    )
    sub.add_argument("path", type=_text, help="a .pth file of score_sde_pytorch, or a folder saved by diffusers")
    sub.add_argument("--format", choices=("score_sde", "diffusers"), default="score_sde", help="what it was saved by")
    sub.add_argument("--config", type=_text, help="settings of the model: name or path of one of our config files")
    sub.add_argument("--model_config", type=_text, help="settings of the model: a JSON file in score_sde_pytorch's own keys")

    sub = command(
        "export",
        "models:export",
        "write a run's model as safetensors and JSON, or for diffusers",
        "--workdir=runs/digits --output=digits_model",
        runs=False,
        configured=False,
    )
    sub.add_argument("--output", type=_text, required=True, help="the new folder")
    sub.add_argument("--format", choices=("safetensors", "diffusers"), default="safetensors", help="what can read it")

    sub = command(
        "compare",
        "measuring:compare_",
        "compare solvers at equal evaluations: CSV, curves, samples and an HTML page",
        "--workdir=runs/moons --solvers=pc,ddim,unipc --nfe=5,10,20",
        sections=("solver", "data"),
    )
    sub.add_argument(
        "--solvers", type=_text, help="names separated by commas; by default some of each kind, and what was tuned"
    )
    sub.add_argument("--nfe", default="5,10,20,50", help="evaluations separated by commas, from 1 or 2 up")
    count(sub, "samples per setting, 20 or more for precision and recall", 256)
    seed(sub)
    of_class(sub)
    output(sub, "the folder to write")

    sub = command(
        "tune",
        "tuning:tune_",
        "choose solver and time grid for each number of evaluations, by measurement",
        "--workdir=runs/moons --nfe=6,10",
        sections=(),
    )
    sub.add_argument("--nfe", default="6,8,10,12,16,20", help="evaluations separated by commas")
    sub.add_argument("--pilot", type=_positive, default=128, help="samples to try solvers on, and as many to check")
    sub.add_argument("--trials", type=_positive, default=60, help="time grids that are tried for each number of evaluations")
    seed(sub)
    of_class(sub)
    clip(sub)
    output(sub, "the folder of the tuned.json to write")

    command(
        "demo",
        "training:demo",
        "train on real digits, sample, measure, compare, and write a report",
        "--workdir=runs/demo",
    )
    command("list", "about:list_", "list everything that can be chosen", "", workdir=False, configured=False)
    sub = command(
        "config",
        "about:config",
        "print a config with its overrides applied",
        "--config=two_moons --config.training.steps=20000",
        workdir=False,
    )
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=_text, help="name or path of a config file")
    source.add_argument("--workdir", type=_text, help="a run directory")
    _accept_edited(sub)
    sub.add_argument("--all", action="store_true", help="also the options of what is not chosen")
    sub = command(
        "data",
        "check:data",
        "look at data, and suggest options for it",
        "check --config=digits_ve",
        "check --config=digits_ve --config.data.file.path=field.npy --config.data=file",
        workdir=False,
        sections=("data", "sde", "solver"),
    )
    sub.add_argument("what", choices=("check",), help="what to do")
    sub.add_argument("--config", type=_text, required=True, help="name or path of a config file, which says what the data is")
    command("doctor", "about:doctor", "check this installation", "", workdir=False, configured=False)
    sub = command(
        "completion",
        "completion:completion",
        "print what lets a shell complete commands and options by the tab key",
        "bash > ~/.local/share/bash-completion/completions/score-sde",
        workdir=False,
        configured=False,
    )
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    return parser
