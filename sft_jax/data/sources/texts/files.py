"""Lists the labelled texts of a file or folder."""

from collections.abc import Collection
from pathlib import Path

from sft_jax.data.images.files import is_ignored
from sft_jax.data.sources.listing import counted, some
from sft_jax.data.sources.part_names import part_of
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.examples import Example, Examples, Found, examples_of, of_sheets
from sft_jax.data.sources.texts.sheet import READERS, read_sheet, text_of
from sft_jax.errors import UserError

# Files whose names do not say their split.
KNOWN_PARTS = {"train_5500": "train", "trec_10": "test"}
# Files that may lie beside those of a set: vocabularies, tokenizers, descriptions.
ASIDE = (".txt", ".json")


def list_texts(
    place: Path,
    notices: list[str],
    keys: Keys,
    known: Collection[str] | None = None,
    labelling: str = "class",
) -> Examples:
    """Lists the texts of a file, or of a folder: files named for splits, or a folder of text files for each class.

    Classes that are numbers are sorted as numbers, others as strings, unless a Parquet file declares its classes.

    Args:
      place: the file or folder.
      notices: receives a line about anything guessed or skipped.
      keys: names of columns.
      known: classes of a network to be evaluated; a single class is then enough.
      labelling: "class" or "number", see `labelling.LABELLINGS`.

    Raises:
      UserError: there are no texts, or their columns or labels are missing or invalid.
    """
    if place.is_dir():
        files = _files(place)
        tables = [path for path in files if path.suffix.lower() in READERS]
        # Text files in a folder for each class look like tables of one cell.
        of_text = all(path.suffix.lower() == ".txt" or not path.suffix for path in files)
        if (of_text and any(path.parent != place for path in files)) or not tables:
            if keys.group is not None:
                raise UserError(f"--group {keys.group} needs tables with such a column, and {place} has text files")
            found = Found(_of_folders(place, files, notices))
        else:
            found = _of_files(place, tables, keys, labelling, notices)
    elif place.is_file():
        if place.suffix.lower() not in READERS:
            raise UserError(f"data.source=text:{place}: texts are read from {', '.join(READERS)} files, or a folder")
        found = _of_files(place.parent, [place], keys, labelling, notices)
    else:
        raise UserError(f"data.source=text:{place}: no such file or folder")
    return examples_of(place, found, notices, known=known, labelling=labelling)


def _files(place: Path) -> list[Path]:
    """Returns the files in and below a folder, sorted; hidden ones and documents about the set are left out."""
    found = sorted(path for path in place.rglob("*") if path.is_file())
    shown = [path for path in found if not any(map(is_ignored, path.relative_to(place).parts))]
    return [path for path in shown if path.stem.casefold() not in ("readme", "license", "licence", "dataset_info")]


def _of_files(root: Path, paths: list[Path], keys: Keys, labelling: str, notices: list[str]) -> Found:
    """Returns the examples of files."""
    parts = {path: _part(path) for path in paths}
    others = [path for path, part in parts.items() if part is None and path.suffix.lower() in ASIDE]
    if len(others) < len(paths) and len(paths) > 1:
        paths = [path for path in paths if path not in others]
        if others:
            notices.append(f"{root}: skipped, because their names say no split: {some(path.name for path in others)}")
    unknown = [path.name for path in paths if parts[path] is None]
    if len(paths) > 1 and unknown:
        raise UserError(
            f"{root} has several files, and the names of {some(unknown)} do not say train, validation or test; "
            f"name one file: text:FILE"
        )
    sheets = ((read_sheet(path, notices), parts[path] if len(paths) > 1 else None) for path in paths)
    return of_sheets(root, sheets, keys, labelling, notices)


def _part(path: Path) -> str | None:
    # Hugging Face's are like train-00000-of-00001.parquet.
    stem = path.stem.partition("-0")[0]
    return KNOWN_PARTS.get(stem.casefold()) or part_of(stem)


def _of_folders(place: Path, paths: list[Path], notices: list[str]) -> list[Example]:
    """Returns the examples of text files: [split/]class/file."""
    found, unlabelled, empty = [], [], 0
    encodings: list[str] = []
    for path in paths:
        *folders, _ = path.relative_to(place).parts
        part = part_of(folders[0]) if len(folders) > 1 else None
        folders = folders[1:] if part else folders
        if len(folders) != 1 or folders[0] in ("unsup",):  # IMDb's texts without a label
            unlabelled.append(path.relative_to(place).as_posix())
            continue
        text = text_of(path, encodings).strip()
        if not text:
            empty += 1
            continue
        found.append(Example(path.relative_to(place).as_posix(), (text,), folders[0], part))
    if encodings:
        notices.append(f"{place}: {counted(len(encodings), 'file')} not in UTF-8, read as Latin-1")
    if unlabelled:
        notices.append(
            f"{place}: {counted(len(unlabelled), 'file')} in no folder of a class skipped: {some(unlabelled)}"
        )
    if empty:
        notices.append(f"{place}: {counted(empty, 'empty file')} skipped")
    return found
