"""One progress bar for all long work: tqdm's in a terminal and in a notebook, plain lines in a file or a pipe."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

Item = TypeVar("Item")

FIRST, LAST, SHARE = 10.0, 300.0, 0.05
"""Seconds before a plain line comes after another: this share of the time so far, at least the first and at most the last."""


class Progress:
    """What has been done of a work, as a context manager: the last plain line comes, and a bar is closed, when it ends.

    Args:
        name: what is done, "training" for example.
        total: of how many parts; 1.0 where only the share of the work is known.
        unit: what a part is called, in the singular; empty where only the share is known.
        done: parts that were done before.
        shown: whether anything is shown.
        stays: whether a bar stays in the terminal when the work is done.
        delay: seconds for which nothing is shown, so that nothing is said of short work.
    """

    def __init__(
        self,
        name: str,
        total: float,
        *,
        unit: str = "",
        done: float = 0,
        shown: bool = True,
        stays: bool = True,
        delay: float = 0.0,
    ):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.shown = shown and sys.stderr is not None
        self.figures = ""
        self._before, self._began, self._delay = done, time.monotonic(), delay
        self._next = self._began + max(delay, FIRST)
        self._bar = _bar(self, stays) if self.shown and _draws_over_lines() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.shown and time.monotonic() - self._began >= self._delay:
            self._print_line()

    def note(self, figures: str | Mapping[str, float]) -> None:
        """Show ``figures`` beside the progress from now on: a text, or numbers by their names."""
        if isinstance(figures, Mapping):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.figures = figures
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)

    def update(self, parts: float = 1) -> None:
        """``parts`` more are done; what is more than the total does not count."""
        parts = min(parts, self.total - self.done)
        self.done += parts
        if self._bar is not None:
            self._bar.update(parts)
        elif self.shown and time.monotonic() >= self._next:
            self._print_line()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Go through ``items``, each of which is a part."""
        for item in items:
            yield item
            self.update()

    def _print_line(self) -> None:
        now = time.monotonic()
        spent, new = now - self._began, self.done - self._before
        self._next = now + min(max(FIRST, SHARE * spent), LAST)
        parts = f"{self.unit} {self.done:.0f} of {self.total:.0f}, " if self.unit else ""
        share = f"{self.done / self.total:.0%}" if self.total else "100%"
        speed = f", {new / spent:.3g} a second" if self.unit and new and spent else ""
        left = f", {_clock(spent / new * (self.total - self.done))} to go" if 0 < self.done < self.total and new else ""
        figures = f", {self.figures}" if self.figures else ""
        print(f"{self.name}: {parts}{share} after {_clock(spent)}{left}{speed}{figures}", file=sys.stderr, flush=True)


class TimeProgress(Progress):
    """Progress of a solver on its way from the time ``t_from`` to ``t_to``, with the evaluations made so far."""

    def __init__(self, solver: object, t_from: float, t_to: float, *, shown: bool):
        super().__init__(type(solver).__name__, 1.0, shown=shown, stays=False)
        self.t, self.span = t_from, t_from - t_to

    def reach(self, t: float, nfe: int) -> None:
        """The solver has come to ``t`` by ``nfe`` evaluations."""
        if self.shown:
            self.note(f"{nfe} evaluations")
            self.update((self.t - t) / self.span)
            self.t = t


def _draws_over_lines() -> bool:
    """Whether standard error is a terminal, or that of a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def _bar(progress: Progress, stays: bool) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets, where tqdm draws with letters
        from tqdm.auto import tqdm

    share: dict[str, Any] = {}
    if not progress.unit:
        share["bar_format"] = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(
        total=progress.total,
        initial=progress.done,
        desc=progress.name,
        unit=progress.unit,
        leave=stays,
        delay=progress._delay,
        **share,
    )


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
