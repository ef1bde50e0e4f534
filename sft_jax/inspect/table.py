"""Tables: all findings, and the data without the examples that should go."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sft_jax.data.sources.listing import counted
from sft_jax.data.sources.pictures import Pictures
from sft_jax.data.sources.table import list_table
from sft_jax.data.sources.texts.columns import PAIRS, Keys
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.errors import UserError
from sft_jax.inspect.examine import Examples, splits
from sft_jax.inspect.finding import UNREADABLE, Finding
from sft_jax.inspect.texts import Writings
from sft_jax.runtime.files import write_bytes

# Of the table of all findings.
COLUMNS = ("file", "issue", "score", "other")
# Why an example is left out of the new table, in words; of several reasons the first one counts.
REASONS = {
    UNREADABLE: "unreadable",
    "leak": "in another split too",
    "duplicate": "duplicates",
    "label": "suspected labels",
}


def check_free(table: Path, new: Path | None, source: str) -> None:
    """Raises UserError if writing to `table` (the findings) or `new` (the data) would destroy a table of the user's."""
    own = source.removeprefix("csv:").removeprefix("text:")
    for path in (table, new):
        if path is not None and path.exists() and Path(own).exists() and path.samefile(own):
            raise UserError(f"{path} would overwrite the table that is inspected; choose another name")
    if new is not None and new.absolute() == table.absolute():
        raise UserError(f"--apply {new} is the name of the table of what was found; choose another")
    if table.exists() and not table.read_bytes().startswith(",".join(COLUMNS).encode()):
        raise UserError(f"{table}, beside the page, exists and is no table of this command; choose another --output")


def write_findings(path: Path, findings: Iterable[Finding], examples: Examples) -> None:
    """Writes the table of all findings. Raises UserError if it cannot be written."""
    rows = [(examples.names[found.row], found.issue, f"{found.score:.4f}", found.other) for found in findings]
    _write(path, [COLUMNS, *rows])


def apply(path: Path, findings: Sequence[Finding], examples: Pictures | Writings, label_score: float = 0.0) -> str:
    """Writes a table of what to keep, which `csv:PATH` or, of texts, `text:PATH` can train on.

    Args:
      path: the table to write.
      findings, examples: see `examine`; images are files.
      label_score: suspected labels with a lower score are kept.

    Returns:
      a line that says what is left out.

    Raises:
      UserError: the table cannot be written or used.
    """
    reasons: dict[int, set[str]] = {}
    for found in findings:
        issue = UNREADABLE if found.issue == "quality" and found.other.startswith(UNREADABLE) else found.issue
        if issue in REASONS and not (issue == "label" and found.score < label_score):
            reasons.setdefault(found.row, set()).add(issue)
    first = [next(issue for issue in REASONS if issue in issues) for issues in reasons.values()]
    kept = [row for row in range(len(examples)) if row not in reasons]
    if isinstance(examples, Writings):
        _write_texts(path, examples, kept)
    else:
        _write_files(path, examples, kept)
    told = [issue for issue in REASONS if issue != UNREADABLE or isinstance(examples, Pictures)]
    words = ", ".join(f"{first.count(issue):,} {REASONS[issue]}" for issue in told)
    count = counted(len(kept), examples.unit)
    return f"wrote {path}: {count} of {len(examples):,}; left out {len(reasons):,}: {words}"


def _write_files(path: Path, pictures: Pictures, kept: Sequence[int]) -> None:
    assert pictures.files is not None
    parts = splits(pictures)
    lines = [
        (_relative(pictures.files[row], path), pictures.class_names[pictures.labels[row]], parts[row] or "train")
        for row in kept
    ]
    _write(path, [("file", "label", "part"), *lines])
    _check(path, {pictures.files[row].absolute() for row in kept})


def _write_texts(path: Path, writings: Writings, kept: Sequence[int]) -> None:
    parts, columns = splits(writings), max(map(len, writings.texts))
    names = ("text",) if columns == 1 else PAIRS[0]
    rows = [(*writings.texts[row], writings.class_names[writings.labels[row]], parts[row] or "train") for row in kept]
    _write(path, [(*names, "label", "part"), *rows])
    with _reading_back(path):
        read = list_texts(path, [], Keys()).all
    if [(*each.text, each.label, each.part) for each in read] != rows:
        raise UserError(f"--apply {path} was written, but some of its texts do not read back as they were")


def _relative(file: Path, table: Path) -> str:
    """Returns the path to write in `table`: relative if the file is below its folder."""
    whole, folder = file.absolute(), table.absolute().parent
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def _check(path: Path, files: set[Path]) -> None:
    """Raises UserError if `path` does not read as a table of exactly these files."""
    with _reading_back(path):
        listing = list_table(path, [])
    read = {Path(os.path.abspath(listing.root / file.name)) for file in listing.files}
    if read != {Path(os.path.abspath(file)) for file in files}:
        raise UserError(f"--apply {path} was written, but some of its file names do not read back; rename those files")


@contextlib.contextmanager
def _reading_back(path: Path) -> Iterator[None]:
    """Raises UserError, which says that `path` was written, if reading it does."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--apply {path} was written, but cannot be trained on: {error}") from None


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    # File names that are not valid UTF-8 are preserved.
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))
