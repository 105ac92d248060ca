"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

import signal
import threading
from types import FrameType
from typing import Self


class Interrupt:
    """Notes the first Ctrl-C or SIGTERM in ``signal``; a second one acts as usual."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Self:
        self.signal: int | None = None
        # only the main thread may catch signals
        caught = self.signals if threading.current_thread() is threading.main_thread() else ()
        self.before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()
