"""Precisions of a network: the dtype of its activations, and that of the factors of its products.

JAX's default for products of float32 arrays is not float32 on every device: an NVIDIA GPU from compute capability 8.0
on rounds the factors to TF32 (10 bits of mantissa), a TPU to bfloat16 (7 bits). Sums are float32 in any case.
"""

import contextlib
from typing import NamedTuple

import jax


class Precision(NamedTuple):
    """A value of the key `precision`.

    Attributes:
      dtype: of activations and of the factors of products.
      products: `jax_default_matmul_precision` of the network's products; None for JAX's default.
    """

    dtype: str
    products: str | None = None


PRECISIONS = {
    "float32": Precision("float32"),
    "highest": Precision("float32", "highest"),
    "tf32": Precision("float32", "tensorfloat32"),
    "bfloat16": Precision("bfloat16"),
}


def multiplying(products: str | None) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which products are traced with a `jax_default_matmul_precision`; None keeps the current."""
    return contextlib.nullcontext() if products is None else jax.default_matmul_precision(products)


def factors(precision: str, platform: str, *, tf32: bool) -> str:
    """Returns the factors of products of a network with this `precision` on a device, in words.

    Args:
      precision: a key of `PRECISIONS`.
      platform: of the device: "cpu", "gpu" or "tpu".
      tf32: whether it is a GPU that multiplies TF32.
    """
    if precision == "bfloat16":
        return "bfloat16"
    if platform == "tpu":
        return {"float32": "bfloat16", "tf32": "3 passes of bfloat16", "highest": "float32, 6 passes of bfloat16"}[
            precision
        ]
    return "TF32" if platform == "gpu" and tf32 and precision != "highest" else "float32"
