"""The ways a command may end other than well. Each carries its exit code (see `run_command`)."""

import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong usage, config or input. The message is one line that says what to do."""

    exit_code = 2


class DivergedError(Exception):
    """The loss is no longer finite."""

    exit_code = 3


class StoppedError(Exception):
    """A signal asked the run to stop; its state was saved and `--resume` continues it."""

    exit_code = 4


def reason(error: Exception) -> str:
    """Formats the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def run_command(command: Callable[[], None]) -> int:
    """Runs `command` and returns the process's exit code.

    0 done, 2 `UserError`, 3 `DivergedError`, 4 `StoppedError`; each of the last three prints its message as one
    line on stderr. As shells have it, 130 for a Ctrl-C that nothing waited for and 141, without a word, where whatever
    read standard output (`| head`) is gone. Anything else is a bug and propagates with its traceback (Python then
    exits with 1).
    """
    try:
        try:
            code = _code_of(command)
        except SystemExit as stopped:
            # Where rich prints, this is how it says so.
            if not isinstance(stopped.__context__, BrokenPipeError):
                _flush()
                raise
            return 128 + signal.SIGPIPE
        _flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # Or Python would try once more as it ends (docs.python.org/3/library/signal.html#note-on-sigpipe).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _code_of(command: Callable[[], None]) -> int:
    try:
        command()
    except (UserError, DivergedError, StoppedError) as error:
        print(f"error: {error}" if error.exit_code != StoppedError.exit_code else str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _flush() -> None:
    if sys.stdout is not None:  # closed from the start, as by `>&-`
        sys.stdout.flush()


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno())
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
