"""The ways a command may end other than well. Each carries its exit code (see `run_command`)."""

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


def run_command(command: Callable[[], None]) -> int:
    """Runs `command` and returns the process's exit code.

    0 done, 2 `UserError`, 3 `DivergedError`, 4 `StoppedError`; each of the last three prints its message as one
    line on stderr. 130, as shells have it, for a Ctrl-C that nothing waited for. Anything else is a bug and
    propagates with its traceback (Python then exits with 1).
    """
    try:
        command()
    except (UserError, DivergedError, StoppedError) as error:
        print(f"error: {error}" if error.exit_code != StoppedError.exit_code else str(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
