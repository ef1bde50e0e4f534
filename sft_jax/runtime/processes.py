"""Several processes that train one run together: how they find each other, agree, and end when one of them is lost.

All of them compute the same; the first one alone touches the run's folder and prints. Whatever one process could decide
by itself, by its clock, its memory or its disk, is decided for all of them here: they must make the same calls in the
same order. With one process, which is the usual case, all of this comes for free.
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

# A process that was not heard of for so long is lost. Where it only hangs nothing else would tell.
HEARTBEAT_SECONDS = 30
# The others may be started by hand, on other machines.
JOIN_SECONDS = 300
# A process that ends well waits so long for the others.
LEAVE_SECONDS = 20


def join(address: str | None, count: int | None, index: int | None) -> None:
    """Makes this process the `index`-th of `count`; to be called before JAX's first use.

    Args:
      address: host:port of the first process; all three None: as the cluster says (TPU pod slices, SLURM, Open MPI,
        Kubernetes; see `jax.distributed.initialize`).
      count: how many processes there are.
      index: from 0.

    Raises:
      UserError: there is no such cluster, or the others cannot be reached.
    """
    where = f"process {index} of {count}" if address is not None else "this process"
    _on_abort(
        f"error: {where} and the others have not found each other within {JOIN_SECONDS} seconds; start all of them, "
        f"with the same --coordinator-address, which all can reach",
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
                f"--distributed finds no cluster here ({_first_line(error)}); name the processes with "
                f"--coordinator-address HOST:PORT --num-processes N --process-id I"
            ) from None
        raise UserError(f"{where} cannot join the others at {address}: {_first_line(error)}") from None
    _on_abort(_LOST, code=1)


def is_primary() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def is_multiprocess() -> bool:
    """Whether there is more than one process."""
    return jax.process_count() > 1


def all_gather_objects(value: Any) -> list[Any]:
    """What each process calls this with, in their order: anything that JSON can hold."""
    if not is_multiprocess():
        return [value]
    own = json.dumps(value).encode()
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    # A power of two: each length is a program to compile.
    length = max(256, 1 << int(sizes.max() - 1).bit_length())
    rows = multihost_utils.process_allgather(np.frombuffer(own.ljust(length), np.uint8))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def all_max(*values: float) -> tuple[float, ...]:
    """Of each argument the largest that any process has."""
    return tuple(max(each) for each in zip(*all_gather_objects(values), strict=True))


def on_primary(call: Callable[[], Any]) -> Any:
    """Calls `call` in the first process alone and returns in all what it returned: anything that JSON can hold.

    Raises:
      UserError: in all processes, where it is raised there.
    """
    found = None
    with all_or_none():
        if is_primary():
            found = call()
    return all_gather_objects(found)[0]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """All processes get through the block, or none: a UserError in one of them is raised in all."""
    error, message = None, None
    try:
        yield
    except UserError as found:
        error, message = found, str(found)
    messages = all_gather_objects(message)
    if error is not None:
        raise error
    for index, other in enumerate(messages):
        if other is not None:
            raise UserError(f"process {index}: {other}")


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises UserError, which names them, where `facts` are not the same in all processes."""
    first, *others = all_gather_objects(dict(facts))
    for index, other in enumerate(others, 1):
        differing = [
            f"{name} ({first[name]!r} and {other.get(name)!r})" for name in first if first[name] != other.get(name)
        ]
        if differing:
            raise UserError(f"process {index} is not at the work of process 0; they differ in {', '.join(differing)}")


def broadcast(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The first process's arrays by name, on the host of every process; the others' argument is not read."""
    if not is_multiprocess():
        return dict(arrays)
    own = jax.device_get(dict(arrays)) if is_primary() else {}
    shapes = all_gather_objects({key: [str(array.dtype), array.shape] for key, array in own.items()})[0]
    like = {key: np.zeros(shape, jax.numpy.dtype(dtype)) for key, (dtype, shape) in shapes.items()}
    return dict(multihost_utils.broadcast_one_to_all(like | own))


def all_gather(rows: Any) -> np.ndarray:
    """The rows of all processes one after the other, on the host of every process."""
    rows = np.asarray(rows)
    return multihost_utils.process_allgather(rows, tiled=True) if is_multiprocess() else rows


def run_together(command: Callable[[], None]) -> None:
    """Runs `command`, one of several processes, and ends this one at once where the others can no longer be reached:
    leaving them in good order would wait for the lost one.

    Raises:
      UserError, DivergedError, StoppedError: which all processes raise.
    """
    try:
        command()
    except (UserError, DivergedError, StoppedError):
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # What collectives raise once a connection is gone; XLA's CPU client has ValueError.
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


# Of handlers that C has, Python needs to know.
_handlers: list[Any] = []


def _on_abort(line: str, code: int) -> None:
    """From now on abort() ends the process with `line`. JAX's client calls it, in a thread of its own, when the others
    cannot be reached or are no longer heard of; Python's own handlers run in the main thread only, which waits then.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        _end(line, code)

    _handlers.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
