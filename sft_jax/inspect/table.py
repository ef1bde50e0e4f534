"""Tables: all findings, and the data without the pictures that should go."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sft_jax.data.sources.listing import counted
from sft_jax.data.sources.pictures import Pictures
from sft_jax.data.sources.table import list_table
from sft_jax.errors import UserError
from sft_jax.inspect.examine import splits
from sft_jax.inspect.finding import UNREADABLE, Finding
from sft_jax.runtime.files import write_bytes

# Of the table of all findings.
COLUMNS = ("file", "issue", "score", "other")
# Why a picture is left out of the new table, in words; of several reasons the first one counts.
REASONS = {
    UNREADABLE: "unreadable",
    "leak": "in another split too",
    "duplicate": "duplicates",
    "label": "suspected labels",
}


def check_free(table: Path, new: Path | None, source: str) -> None:
    """Raises UserError if writing to `table` (the findings) or `new` (the data) would destroy a table of the user's."""
    own = source.removeprefix("csv:")
    for path in (table, new):
        if path is not None and path.exists() and Path(own).exists() and path.samefile(own):
            raise UserError(f"{path} would overwrite the table that is inspected; choose another name")
    if new is not None and new.absolute() == table.absolute():
        raise UserError(f"--apply {new} is the name of the table of what was found; choose another")
    if table.exists() and not table.read_bytes().startswith(",".join(COLUMNS).encode()):
        raise UserError(f"{table}, beside the page, exists and is no table of this command; choose another --output")


def write_findings(path: Path, findings: Iterable[Finding], pictures: Pictures) -> None:
    """Writes the table of all findings. Raises UserError if it cannot be written."""
    rows = [(pictures.names[found.row], found.issue, f"{found.score:.4f}", found.other) for found in findings]
    _write(path, [COLUMNS, *rows])


def apply(path: Path, findings: Sequence[Finding], pictures: Pictures, label_score: float = 0.0) -> str:
    """Writes a table of the files to keep, which `csv:PATH` can train on; returns a line that says what is left out.

    Args:
      path: the table to write.
      findings, pictures: see `examine`.
      label_score: suspected labels with a lower score are kept.

    Raises:
      UserError: the pictures are not files, or the table cannot be written or used.
    """
    if pictures.files is None:
        raise UserError("--apply writes a table of files, but these pictures are not files; use folder: or csv:")
    reasons: dict[int, set[str]] = {}
    for found in findings:
        issue = UNREADABLE if found.issue == "quality" and found.other.startswith(UNREADABLE) else found.issue
        if issue in REASONS and not (issue == "label" and found.score < label_score):
            reasons.setdefault(found.row, set()).add(issue)
    first = [next(issue for issue in REASONS if issue in issues) for issues in reasons.values()]
    kept = [row for row in range(len(pictures)) if row not in reasons]
    parts = splits(pictures)
    lines = [
        (_relative(pictures.files[row], path), pictures.class_names[pictures.labels[row]], parts[row] or "train")
        for row in kept
    ]
    _write(path, [("file", "label", "part"), *lines])
    _check(path, {pictures.files[row].absolute() for row in kept})
    words = ", ".join(f"{first.count(issue):,} {text}" for issue, text in REASONS.items())
    return f"wrote {path}: {counted(len(kept))} of {len(pictures):,}; left out {len(reasons):,}: {words}"


def _relative(file: Path, table: Path) -> str:
    """Returns the path to write in `table`: relative if the file is below its folder."""
    whole, folder = file.absolute(), table.absolute().parent
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def _check(path: Path, files: set[Path]) -> None:
    """Raises UserError if `path` does not read as a table of exactly these files."""
    try:
        listing = list_table(path, [])
    except UserError as error:
        raise UserError(f"--apply {path} was written, but cannot be trained on: {error}") from None
    read = {Path(os.path.abspath(listing.root / file.name)) for file in listing.files}
    if read != {Path(os.path.abspath(file)) for file in files}:
        raise UserError(f"--apply {path} was written, but some of its file names do not read back; rename those files")


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    # File names that are not valid UTF-8 are preserved.
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))
