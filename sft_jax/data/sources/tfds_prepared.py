"""The records of a dataset that tensorflow_datasets has prepared; TFRecord files need TensorFlow."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_jax.config.shipped import install_command
from sft_jax.errors import UserError

# Records read at a time; a block's encoded images take little memory.
BLOCK = 512

Record = dict[str, Any]


class Prepared:
    """The records of the prepared dataset `name`.

    Attributes:
      undecoded: names of image features, which are not decoded.
    """

    undecoded: tuple[str, ...] = ()

    def __init__(self, builder: Any, name: str):
        self._builder, self._name = builder, name

    def count(self, key: str, split: str) -> int:
        """Returns the number of records of `split`, the value of data.KEY. Raises UserError if there are none."""
        splits = self._builder.info.splits
        problem = "is empty"
        try:
            count = splits[split].num_examples
        except Exception as error:  # tfds raises ValueError, KeyError and its own
            count, problem = 0, f"cannot be used: {first_line(error).removesuffix('.')}"
        if not count:
            raise UserError(f"data.{key}={split} {problem}; {self.others(key)}")
        return count

    def others(self, key: str) -> str:
        """Says what to type instead of an unusable split for data.KEY."""
        known = ", ".join(f"{name} ({info.num_examples:,})" for name, info in self._builder.info.splits.items())
        return (
            f"tfds:{self._name} has {known}: name one, or a slice such as 'train[90%:]', with --config.data.{key}=SPLIT"
        )

    @property
    def folder(self) -> Path:
        """The folder of the prepared dataset."""
        return Path(self._builder.data_dir)

    def records(self, split: str) -> Iterator[Record]:
        """Yields the records of a split in order."""
        import tensorflow_datasets as tfds

        source = self.source(split)
        if source is not None:
            for first in range(0, len(source), BLOCK):
                yield from source.__getitems__(list(range(first, min(first + BLOCK, len(source)))))
            return
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"tfds:{self._name} in {self._builder.data_dir} was prepared as TFRecord, which only TensorFlow can "
                f"read: {install_command('prepare')}"
            )
        skip = {key: tfds.decode.SkipDecoding() for key in self.undecoded}
        yield from tfds.as_numpy(self._builder.as_dataset(split=split, shuffle_files=False, decoders=skip))

    def source(self, split: str) -> Any | None:
        """Returns a split's records by index; None if prepared as TFRecord, which has no random access."""
        import tensorflow_datasets as tfds

        try:
            skip = {key: tfds.decode.SkipDecoding() for key in self.undecoded}
            return self._builder.as_data_source(split=split, decoders=skip)
        except NotImplementedError:
            return None

    @contextlib.contextmanager
    def reading(self, split: str) -> Iterator[None]:
        """Turns any error from damaged files into UserError; tfds, array_record and Pillow share no base class."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"split {split!r} of tfds:{self._name} in {self._builder.data_dir} cannot be read: {first_line(error)}"
            ) from error


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message, or the name of its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
