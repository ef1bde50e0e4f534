"""Multi-process training: how the processes of a run connect, communicate, and end when one of them is lost.

All processes compute the same; only the primary one accesses the run's folder and prints. They must make the same calls
in the same order, so decisions that depend on one process's clock, memory or disk are made jointly with these
functions. With a single process, the usual case, they cost nothing.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sft_jax.errors import DivergedError, StoppedError, UserError

# Silence after which a process is considered lost; nothing else detects one that hangs.
HEARTBEAT_SECONDS = 30
# Long enough to start the processes by hand, on several machines.
JOIN_SECONDS = 300
# Time that a successful process waits for the others.
LEAVE_SECONDS = 20


def join(address: str | None, count: int | None, index: int | None) -> None:
    """Makes this process number `index` of `count`. Call it before the first use of JAX.

    Args:
      address: host:port of process 0. If all three are None, they come from the cluster (TPU pod slices, SLURM, Open
        MPI, Kubernetes; see `jax.distributed.initialize`).
      count: number of processes.
      index: counted from 0.

    Raises:
      UserError: no cluster is detected, or the other processes cannot be reached.
    """
    where = f"process {index} of {count}" if address is not None else "this process"
    _on_abort(
        f"error: {where} could not connect to the others within {JOIN_SECONDS} seconds; start all of them with the "
        f"same --coordinator-address, which all must be able to reach",
        code=UserError.exit_code,
    )
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        if address is None:
            raise UserError(
                f"--distributed detects no cluster ({_first_line(error)}); specify the processes with "
                f"--coordinator-address HOST:PORT --num-processes N --process-id I"
            ) from None
        raise UserError(f"{where} cannot connect to the others at {address}: {_first_line(error)}") from None
    _on_abort(_LOST, code=1)


def is_primary() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Returns whether there is more than one process."""
    return jax.process_count() > 1


def all_gather_objects(value: Any) -> list[Any]:
    """Gathers a JSON-serialisable value from every process, in process order."""
    if not is_multiprocess():
        return [value]
    own = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    # Rounded to a few lengths, because each one compiles a program.
    length = max(256, 1 << int(sizes.max() - 1).bit_length())
    rows = multihost_utils.process_allgather(np.frombuffer(own.ljust(length), np.uint8))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def all_max(*values: float) -> tuple[float, ...]:
    """Returns, for each argument, its maximum over all processes."""
    return tuple(max(each) for each in zip(*all_gather_objects(values), strict=True))


def on_primary(call: Callable[[], Any]) -> Any:
    """Calls `call` in the primary process only and returns its JSON-serialisable result in all processes.

    Raises:
      UserError: in all processes, if `call` raises it.
    """
    result = None
    with all_or_none():
        if is_primary():
            result = call()
    return all_gather_objects(result)[0]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Raises a UserError that occurs in the block in any process in all of them."""
    error, message = None, None
    try:
        yield
    except UserError as raised:
        error, message = raised, str(raised)
    messages = all_gather_objects(message)
    if error is not None:
        raise error
    for index, other in enumerate(messages):
        if other is not None:
            raise UserError(f"process {index}: {other}")


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises UserError if `facts` differ between processes; the message lists the differences."""
    first, *others = all_gather_objects(dict(facts))
    for index, other in enumerate(others, 1):
        differing = [
            f"{name} ({first[name]!r} and {other.get(name)!r})" for name in first if first[name] != other.get(name)
        ]
        if differing:
            raise UserError(
                f"processes 0 and {index} differ in {', '.join(differing)}; start all of them with the same command"
            )


def broadcast(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Copies the primary process's arrays to the host of every process; the argument of the others is ignored."""
    if not is_multiprocess():
        return dict(arrays)
    own = jax.device_get(dict(arrays)) if is_primary() else {}
    shapes = all_gather_objects({key: [str(array.dtype), array.shape] for key, array in own.items()})[0]
    like = {key: np.zeros(shape, jax.numpy.dtype(dtype)) for key, (dtype, shape) in shapes.items()}
    return dict(multihost_utils.broadcast_one_to_all(like | own))


def all_gather(rows: Any) -> np.ndarray:
    """Concatenates the rows of all processes, on the host of every process."""
    rows = np.asarray(rows)
    return multihost_utils.process_allgather(rows, tiled=True) if is_multiprocess() else rows


def run_together(command: Callable[[], None]) -> None:
    """Runs `command` in one of several processes, and exits at once if the others cannot be reached.

    An orderly shutdown would wait for the lost process.

    Raises:
      UserError, DivergedError, StoppedError: they are raised in all processes.
    """
    try:
        command()
    except (UserError, DivergedError, StoppedError):
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Collectives raise these once a connection is lost; XLA's CPU client raises ValueError.
        if not isinstance(error, jax.errors.JaxRuntimeError) and "Gloo" not in str(error):
            _end_with_traceback()
        _end(f"{_LOST}: {_first_line(error)}")
    except KeyboardInterrupt:
        _end("interrupted", code=128 + signal.SIGINT)
    except BaseException:
        _end_with_traceback()


_LOST = (
    "error: another process of this run has ended or cannot be reached; the checkpoints are kept, "
    "start all processes again with --resume"
)


def _end(line: str, code: int = 1) -> None:
    os.write(2, f"{line}\n".encode())
    os._exit(code)


def _end_with_traceback() -> None:
    traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


# Keeps the C handlers alive.
_handlers: list[Any] = []


def _on_abort(line: str, code: int) -> None:
    """Makes abort() end the process with the message `line`.

    JAX's client calls abort() in a background thread if the others cannot be reached or have been silent for too long.
    Python's signal handlers would run in the main thread, which is blocked then.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        _end(line, code)

    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
