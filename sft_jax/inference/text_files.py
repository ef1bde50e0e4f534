"""Predictions for the texts that a user names: strings, tables, Parquet files and files of one text a line."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sft_jax.data.sources.texts.columns import Keys, named, text_columns
from sft_jax.data.sources.texts.sheet import READERS, read_sheet, text_of
from sft_jax.data.texts.reading import Text
from sft_jax.errors import UserError
from sft_jax.inference.texts import CHUNK, TextClassifier


class NamedText(NamedTuple):
    """A text and where it is, e.g. "reviews.csv:12"."""

    name: str
    text: Text


def of_strings(texts: Iterable[str]) -> Iterator[NamedText]:
    """Yields strings that were typed, named by their number."""
    for number, text in enumerate(texts, start=1):
        yield NamedText(f"text {number}", (text,))


def of_file(path: Path, columns: str | None, tell: Callable[[str], None], notices: list[str]) -> Iterator[NamedText]:
    """Yields the texts of a file, of a .txt one for each line; calls `tell` with a line if it cannot be read.

    Args:
      path: the file.
      columns: names of the columns with the texts; None: guessed.
      tell: receives the problem.
      notices: receives a line about anything guessed or skipped.
    """
    try:
        found = _texts(path, columns, notices)
    except UserError as error:
        tell(str(error))
        return
    kept = [each for each in found if any(each.text)]
    if len(kept) < len(found):
        notices.append(f"{path}: {len(found) - len(kept)} empty texts skipped")
    yield from kept


def _texts(path: Path, columns: str | None, notices: list[str]) -> list[NamedText]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a text itself is given with --text")
    if path.suffix.lower() == ".txt":
        lines = text_of(path, notices).splitlines()
        return [NamedText(f"{path}:{number}", (line.strip(),)) for number, line in enumerate(lines, start=1)]
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: texts are read from {', '.join(READERS)} files")
    sheet = read_sheet(path, notices)
    if not sheet.rows:
        raise UserError(f"{path} is empty")
    sheet = named(sheet, Keys(columns))
    chosen = text_columns(sheet, columns)
    assert sheet.names is not None
    notices.append(f"{path}: texts from column {' and '.join(repr(sheet.names[column]) for column in chosen)}")
    return [
        NamedText(f"{path}:{line}", tuple((row[column] or "").strip() for column in chosen))
        for line, row in zip(sheet.lines, sheet.rows, strict=True)
    ]


def text_predictions(
    classifier: TextClassifier, texts: Iterable[NamedText], top: int | None, *, explain: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """Yields the predictions of texts, as printed by `--json`, some at a time.

    With `explain` they have "contributions": the parts of the text with what each contributes to the prediction, -1
    (against) to 1 (for), see `spans.weighed`.
    """
    rest = iter(texts)
    while block := list(itertools.islice(rest, CHUNK)):
        given = [each.text for each in block]
        outputs = classifier.logits(given)
        answers: list[dict[str, Any]] = [
            {"file": name, "text": text[0] if len(text) == 1 else list(text)} | answer
            for (name, text), answer in zip(block, classifier.decoder.answers(outputs, top), strict=True)
        ]
        if explain:
            for answer, spans in zip(answers, classifier.explain(given, outputs.argmax(-1)), strict=True):
                answer["contributions"] = [[span.text, round(span.weight, 4)] for span in spans]
        yield answers
