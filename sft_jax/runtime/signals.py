"""Handles requests to stop: SIGTERM from a scheduler and Ctrl-C from a user."""

import os
import signal
from types import FrameType


class StopRequest:
    """A context that only records the first SIGTERM or SIGINT, so that the current step can be finished and saved.

    A second signal has its usual effect. As with all Python signal handlers, it works in the main thread only.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        # Not print(), which the handler may have interrupted.
        os.write(2, b"stopping after the current step; interrupt again to stop immediately without saving\n")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # returned by signal.signal
        self._previous.clear()
