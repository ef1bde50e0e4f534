"""Arrays of examples as they lie on a device."""

import dataclasses

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Arrays of examples on the devices, one flat row each.

    A TPU stores the last two axes of an array in tiles of 8 x 128 numbers: images [n, 32, 32, 3] would take four times
    their size, and a copy of all of them in every call (TPU v5e, jax 0.10.2).

    Attributes:
      values: [n, size], or [n] if the examples are scalars.
      shape: of an example.
      length: how much of an example's first axis is read, the rest being padding; None for all.
    """

    values: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    length: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __getitem__(self, index: jax.Array) -> jax.Array:
        """Returns the examples at `index`, an integer array: [*index.shape, *shape], or `length` in place of shape's
        first.
        """
        rows = self.values[index].reshape(*index.shape, *self.shape)
        return rows if self.length is None else rows[(slice(None),) * index.ndim + (slice(self.length),)]

    def cut(self, length: int | None) -> "Rows":
        """Returns the same examples, of which `length` is read."""
        return dataclasses.replace(self, length=length)


def flat_rows(array: np.ndarray, axes: int) -> Rows:
    """Flattens the examples, which follow the first `axes` axes of an array."""
    leading, shape = array.shape[:axes], array.shape[axes:]
    return Rows(array.reshape(*leading, -1) if shape else array, shape)  # type: ignore[arg-type]  # not yet on a device
