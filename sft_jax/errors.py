"""Exceptions that end a command, each with its exit code (see `run_command`)."""

import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Invalid usage, config or input. The message is one line that says what to do."""

    exit_code = 2


class DivergedError(Exception):
    """The loss became NaN or infinite."""

    exit_code = 3


class StoppedError(Exception):
    """A signal stopped the run; its state was saved and `--resume` continues it."""

    exit_code = 4


def reason(error: Exception) -> str:
    """Formats the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def run_command(command: Callable[[], None]) -> int:
    """Runs `command` and returns the exit code of the process.

    0 for success, 2 for `UserError`, 3 for `DivergedError`, 4 for `StoppedError`; the last three print their message
    as one line on stderr. Following shell convention, an unhandled Ctrl-C gives 130, and a closed pipe on standard
    output (`| head`) gives 141 silently. Any other exception is a bug and propagates with its traceback (exit code 1).
    """
    try:
        try:
            code = _code_of(command)
        except SystemExit as stopped:
            # rich turns a BrokenPipeError into SystemExit.
            if not isinstance(stopped.__context__, BrokenPipeError):
                _flush()
                raise
            return 128 + signal.SIGPIPE
        _flush()
    except BrokenPipeError:
        if not _unread():
            raise
        # Otherwise Python flushes again at exit and fails (docs.python.org/3/library/signal.html#note-on-sigpipe).
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
    if sys.stdout is not None:  # it is None if closed from the start (`>&-`)
        sys.stdout.flush()


def _unread() -> bool:
    """Returns whether standard output is a pipe whose reader is gone."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno())
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
