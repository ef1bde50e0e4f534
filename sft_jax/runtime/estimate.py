"""XLA's estimates of the cost of a compiled step: memory and floating-point operations."""

from collections.abc import Callable
from typing import Any

import jax

from sft_jax.errors import UserError


def compile_step(program: Callable, *arguments: Any) -> int | None:
    """Compiles `program`, from `Devices.compile`, for `arguments`, so that a later call with such arguments does not.

    Returns:
      bytes of memory per device that a call needs, including its arguments and results; None if the compiler does not
      report it.
    """
    return bytes_needed(compiled(program, *arguments))


def compiled(program: Callable, *arguments: Any) -> Any:
    """Returns `program`, from `Devices.compile`, compiled for `arguments`, as a `jax.stages.Compiled`."""
    return program.lower(*arguments).compile()  # type: ignore[attr-defined]  # pmap's


def bytes_needed(program: Any) -> int | None:
    """Returns the bytes of memory per device that a call of a compiled program needs, see `compile_step`."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    # Results in the memory of donated arguments are counted twice.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def flops(function: Callable, *arguments: Any) -> float:
    """Counts the floating-point operations of a call of `function`; a multiply-add counts as two.

    On any machine, they are those of plain convolutions as on accelerators; convolutions optimised for CPUs need fewer.
    Products with padding are not counted. `arguments` are `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: JAX is not allowed to use the CPU, whose backend alone counts operations.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        allowed = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise UserError(
            f"JAX_PLATFORMS={allowed} keeps JAX from the CPU, on which operations are counted; "
            f"use JAX_PLATFORMS={allowed},cpu"
        ) from None
    with jax.default_device(cpu):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    analysis = lowered.cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def size_text(count: float) -> str:
    """Formats a number of bytes, e.g. 171 MiB or 2.1 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
