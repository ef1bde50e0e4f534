"""Predictions as lines of JSON, as a CSV file and as a table on the terminal."""

import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sft_jax.cli import printable
from sft_jax.errors import UserError
from sft_jax.tasks.decoding import Decoder

PIPE_WIDTH = 10_000
PICTURE = "picture"
# Characters of a text in the printed table.
SHOWN = 60

# A prediction as printed by `--json`.
Answer = dict[str, Any]


def print_json(answers: Iterable[Answer]) -> None:
    """Prints one object per line."""
    for answer in answers:
        print(json.dumps(answer))
    sys.stdout.flush()


class CsvTable:
    """A new CSV file with one row per image or text, for `--top`. Raises UserError if it cannot be written."""

    def __init__(self, path: Path, decoder: Decoder, top: int | None, *, of_texts: bool = False) -> None:
        self._path, self._cells, self._of_texts = path, decoder.cells, of_texts
        columns = [*(["text"] if of_texts else []), *decoder.columns(top)]
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            # File names that are not valid UTF-8 are preserved.
            self._file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._rows = csv.writer(self._file)
        self._add([["file", *columns]])

    def show(self, answers: Iterable[Answer]) -> None:
        """Adds rows."""
        self._add([answer["file"], *self._text(answer), *self._cells(answer)] for answer in answers)

    def _text(self, answer: Answer) -> list[str]:
        return [_joined(answer["text"])] if self._of_texts else []

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, rows: Iterable[list[Any]]) -> None:
        with self._writing():
            self._rows.writerows(rows)
            self._file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"--output {self._path} cannot be written: {error.strerror}") from None


class Table:
    """A table printed batch by batch; its header is printed once, and its columns never get narrower."""

    def __init__(self, decoder: Decoder, unit: str = "image") -> None:
        from rich.console import Console

        self._decoder, self._of_texts = decoder, unit == "text"
        self._heads = ("text" if self._of_texts else PICTURE, *decoder.heads)
        self._console = Console(markup=False, emoji=False, highlight=False)
        if not self._console.is_terminal:
            self._console.width = PIPE_WIDTH  # wide enough not to wrap
        self._widths: dict[str, int] = {}

    def show(self, answers: Iterable[Answer]) -> None:
        """Prints rows."""
        from rich.table import Table as RichTable
        from rich.text import Text

        rows = [(self._name(answer), *self._decoder.row(answer)) for answer in answers]
        table = RichTable(box=None, show_header=not self._widths, pad_edge=False)
        for column, head in enumerate(self._heads):
            self._widths[head] = max(len(head), self._widths.get(head, 0), *(len(row[column]) for row in rows))
            room = min(self._widths[head], self._console.width // len(self._heads))
            table.add_column(
                head, justify="right" if head in self._decoder.right else "left", overflow="fold", min_width=room
            )
        for row in rows:
            table.add_row(*map(Text, row))  # Text, because a file name may look like markup, e.g. [red]
        self._console.print(table)

    def _name(self, answer: Answer) -> str:
        if not self._of_texts:
            return printable(answer["file"])
        text = " ".join(_joined(answer["text"]).split())
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else " | ".join(text)
