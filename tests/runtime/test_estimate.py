"""Operations are counted on JAX's CPU backend, because those of GPUs and TPUs do not count."""

import jax
import pytest

from sft_jax.errors import UserError
from sft_jax.runtime.estimate import flops

SHAPES = jax.ShapeDtypeStruct((8, 16), "float32"), jax.ShapeDtypeStruct((16, 32), "float32")


def test_a_multiply_add_counts_as_two():
    assert flops(lambda x, y: x @ y, *SHAPES) == 2 * 8 * 16 * 32


def test_without_a_cpu_backend_it_is_a_one_line_error(monkeypatch):
    def no_cpu(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    allowed = jax.config.jax_platforms
    with pytest.raises(UserError, match=f"^JAX_PLATFORMS={allowed} keeps JAX .*; use JAX_PLATFORMS={allowed},cpu$"):
        flops(lambda x, y: x @ y, *SHAPES)
