"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a user."""

import os
import signal
from types import FrameType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT is only noted, so that the step under way is finished and saved.

    The second one acts as it always does. Usable in the main thread only, as Python's signal handlers are.
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
        # Not print(): the handler may interrupt a print under way.
        os.write(2, b"stopping after the step under way; once more to stop at once, without saving\n")
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        self._previous.clear()
