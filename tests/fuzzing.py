"""Shared parts of the fuzz tests: number of inputs, damaging of files, and checks of error messages."""

import contextlib
import os
from collections.abc import Iterator

import hypothesis
from counted import counts
from hypothesis import HealthCheck
from hypothesis import strategies as st

from sft_jax.errors import UserError

# `pytest -m slow` tries this many times as many inputs.
TIMES = 20
FACTOR = int(os.environ.get("SFT_JAX_FUZZ", "1"))


def tries(count: int):
    """Makes a test try this many inputs, the same ones every time; fixtures are shared by all of them."""
    settings = hypothesis.settings(
        max_examples=count * FACTOR,
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return lambda test: counts(drawn=count)(settings(test))


@st.composite
def damages(draw, names=("delete", "empty", "truncate", "flip", "insert", "swap")):
    """Draws a function that damages the contents of a file; it returns None to delete the file."""
    name, place, value = draw(st.sampled_from(names)), draw(st.floats(0, 1)), draw(st.integers(1, 255))

    def damage(data: bytes) -> bytes | None:
        position = min(int(place * len(data)), max(len(data) - 1, 0))
        before, after = data[:position], data[position:]
        return {
            "delete": None,
            "empty": b"",
            "truncate": before,
            "flip": before + bytes([after[0] ^ value]) + after[1:] if after else b"",
            "insert": before + bytes(value) + after,
            "swap": after + before,
        }[name]

    damage.__name__ = f"{name}@{place:.3f}^{value}"
    return damage


@contextlib.contextmanager
def refusals() -> Iterator[list[str]]:
    """Collects the message if the block raises a UserError, and checks that it is short."""
    said: list[str] = []
    try:
        yield said
    except UserError as error:
        said.append(str(error))
        assert said[0].strip()
        assert len(said[0].splitlines()[0]) < 2000


def write(path, data: bytes | None) -> None:
    """Replaces the file `path` by `data`, or deletes it if that is None."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def contents(folder) -> dict[str, bytes]:
    """Returns all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
