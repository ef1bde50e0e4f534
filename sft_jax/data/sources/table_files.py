"""Resolves the files that a table names, relative to its folder or to one next to it, with or without suffix."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_jax.data.images.files import SUFFIXES
from sft_jax.data.sources.listing import Label, LabelledFile, some
from sft_jax.errors import UserError

# Folders next to a table that may contain its images, after the folder of the table's own name.
FOLDERS = ("images", "train", "train_images", "img", "data", "test", "test_images")


class Places:
    """The folders that a table's paths may be relative to, each scanned once."""

    def __init__(self, table: Path):
        named = [table.parent, table.parent / table.stem, *(table.parent / name for name in FOLDERS)]
        self.bases = [folder for folder in dict.fromkeys(named) if folder.is_dir()]
        self._names: dict[str, dict[str, list[str]]] = {}

    def holds(self, cell: str) -> bool:
        """Returns whether `cell` names a file relative to any of the folders."""
        return any(self.find(base, cell) for base in self.bases)

    def find(self, base: Path, cell: str) -> str | None:
        """Returns the file that `cell` names, relative to `base` unless absolute. Raises UserError if ambiguous."""
        if not cell or "\0" in cell:
            return None
        # Tables written on Windows use backslashes.
        for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
            path = os.path.normpath(os.path.join(base, os.path.expanduser(text)))
            folder, name = os.path.split(path)
            here = self._files(folder).get(_plain(name), [])
            exact = [other for other in here if _composed(other) == _composed(name)]
            likely = exact or [other for other in here if os.path.splitext(other)[1].lower() in SUFFIXES]
            if len(likely) > 1:
                raise UserError(f"{path} is ambiguous: {some(sorted(likely))}; add the suffix, or keep one of them")
            if likely:
                return os.path.join(folder, likely[0])
        return None

    def _files(self, folder: str) -> dict[str, list[str]]:
        """Indexes the files in `folder` by name, and by name without the last suffix."""
        if folder not in self._names:
            index: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries if entry.is_file()]
            except (OSError, ValueError):
                names = []
            for name in names:
                for key in {_plain(name), _plain(os.path.splitext(name)[0])}:
                    index.setdefault(key, []).append(name)
            self._names[folder] = index
        return self._names[folder]


class Files:
    """The files named by the cells of a table.

    Attributes:
      base: the folder that the cells are relative to.
      root: the folder that names in a listing are relative to: the table's, or the closest parent with all the files.

    Raises:
      UserError: files are missing, or a cell is ambiguous.
    """

    def __init__(self, table: Path, places: Places, cells: Sequence[str]):
        resolved = {base: [places.find(base, cell) for cell in cells] for base in places.bases}
        # The folder with the most files, ideally all of them.
        self.base = max(places.bases, key=lambda base: sum(path is not None for path in resolved[base]))
        paths = resolved[self.base]
        missing = [cell for cell, path in zip(cells, paths, strict=True) if path is None]
        if missing:
            raise UserError(
                f"{table}: {len(missing):,} of its {len(cells):,} files do not exist: {some(missing)}; "
                f"searched in {', '.join(map(str, places.bases))}"
            )
        self._paths = [os.path.abspath(path) for path in paths if path is not None]
        folder = os.path.abspath(table.parent)
        self.root = Path(os.path.commonpath([folder, *map(os.path.dirname, self._paths)]))

    def labelled(
        self, labels: Sequence[Label], parts: Sequence[str | None], groups: Sequence[str | None]
    ) -> Iterator[LabelledFile]:
        """Yields the files with their labels, splits and groups, in the order of the cells."""
        base = os.path.abspath(self.base)
        for path, label, part, group in zip(self._paths, labels, parts, groups, strict=True):
            name, key = (Path(os.path.relpath(path, start)).as_posix() for start in (self.root, base))
            yield LabelledFile(name, key, label, part, group)


def _composed(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return _composed(name).casefold()
