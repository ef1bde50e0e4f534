"""What the fuzz tests share: how many inputs they try, how files are damaged, and what a refusal is."""

import contextlib
import os
from collections.abc import Iterator

import hypothesis
from counted import counts
from hypothesis import HealthCheck
from hypothesis import strategies as st

from sft_jax.errors import UserError

# `pytest -m slow` tries so many times as many.
TIMES = 20
FACTOR = int(os.environ.get("SFT_JAX_FUZZ", "1"))


def tries(count: int):
    """So many inputs, the same ones every time; fixtures serve all of them."""
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
    """A function that damages bytes, the first of which is what becomes of the file; None: it is gone."""
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
    """Collects the message where what is done within is refused; it must be short enough to be read."""
    said: list[str] = []
    try:
        yield said
    except UserError as error:
        said.append(str(error))
        assert said[0].strip()
        assert len(said[0].splitlines()[0]) < 2000


def write(path, data: bytes | None) -> None:
    """`data` in place of what is at `path`; None: nothing."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def contents(folder) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
