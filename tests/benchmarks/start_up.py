"""What it costs to start: CPU seconds of processes of their own, the smallest of several interleaved runs.

    python -m tests.benchmarks.start_up --runs=7

Beyond the bare interpreter, what answers without a model takes at most 0.5 s. Touching every public name of the package takes
at most 1.15 times what ``import torch`` alone takes.
"""

import argparse
import resource
import subprocess
import sys

EVERY_NAME = "import score_sde; [getattr(score_sde, name) for name in score_sde.__all__]"
COMMANDS = {
    "interpreter": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import score_sde": ["-c", "import score_sde"],
    "every public name": ["-c", EVERY_NAME],
    "--help": ["-m", "score_sde", "--help"],
    "--version": ["-m", "score_sde", "--version"],
    "sample --help": ["-m", "score_sde", "sample", "--help"],
    "a mistyped command": ["-m", "score_sde", "smaple"],
    "list": ["-m", "score_sde", "list"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of a Python process, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    least = dict.fromkeys(COMMANDS, float("inf"))
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            least[name] = min(least[name], cpu_seconds(arguments))
    bare, torch = least["interpreter"], least["import torch"]
    print(f"{'':<20}{'CPU s':>8}{'beyond the interpreter':>26}{'of import torch':>18}")
    for name, seconds in least.items():
        print(f"{name:<20}{seconds:>8.2f}{seconds - bare:>26.2f}{seconds / torch:>18.2f}")


if __name__ == "__main__":
    main()
