"""What a compiled step costs, as XLA counts it: memory and floating-point operations."""

from collections.abc import Callable
from typing import Any

import jax


def compile_step(program: Callable, *arguments: Any) -> int | None:
    """Compiles `program`, of `Devices.compile`, for `arguments`: the next call with the like runs at once.

    Returns:
      bytes of memory that a call needs on each device, its arguments and results included; None where the device's
      compiler does not tell.
    """
    found = program.lower(*arguments).compile().memory_analysis()  # type: ignore[attr-defined]  # pmap's
    if found is None:
        return None
    # Results that take the place of donated arguments are counted among both.
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + results + found.temp_size_in_bytes


def flops(function: Callable, *arguments: Any) -> float:
    """Floating-point operations of one call of `function`, a multiply-add counted as two.

    They are those of plain convolutions, as an accelerator computes them, whatever the machine: convolutions made for
    CPUs need fewer. Products with padding are not counted. `arguments` may be `jax.ShapeDtypeStruct`s.
    """
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    analysis = lowered.cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def size_text(count: float) -> str:
    """Bytes in words: 171 MiB, 2.1 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
