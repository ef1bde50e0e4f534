"""The files that a table names: relative to its folder or to one beside it, with a suffix or without."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft_jax.data.images.files import SUFFIXES
from sft_jax.data.sources.listing import LabelledFile, some
from sft_jax.errors import UserError

# Folders beside a table in which its images may lie, after that of its own name.
FOLDERS = ("images", "train", "train_images", "img", "data", "test", "test_images")


class Places:
    """The folders to which the paths of a table may be relative, each looked through once."""

    def __init__(self, table: Path):
        named = [table.parent, table.parent / table.stem, *(table.parent / name for name in FOLDERS)]
        self.bases = [folder for folder in dict.fromkeys(named) if folder.is_dir()]
        self._names: dict[str, dict[str, list[str]]] = {}

    def holds(self, cell: str) -> bool:
        """Whether `cell` means a file anywhere."""
        return any(self.find(base, cell) for base in self.bases)

    def find(self, base: Path, cell: str) -> str | None:
        """The file that `cell` means, below `base` unless it is absolute. Raises UserError where several are meant."""
        if not cell or "\0" in cell:
            return None
        # Tables made on Windows have backslashes.
        for text in dict.fromkeys((cell, cell.replace("\\", "/"))):
            path = os.path.normpath(os.path.join(base, os.path.expanduser(text)))
            folder, name = os.path.split(path)
            here = self._files(folder).get(_plain(name), [])
            exact = [other for other in here if _composed(other) == _composed(name)]
            likely = exact or [other for other in here if os.path.splitext(other)[1].lower() in SUFFIXES]
            if len(likely) > 1:
                raise UserError(f"{path} may mean {some(sorted(likely))}: write the suffix, or keep one of them")
            if likely:
                return os.path.join(folder, likely[0])
        return None

    def _files(self, folder: str) -> dict[str, list[str]]:
        """The names of the files in `folder`, by themselves and by what they are without their last suffix."""
        if folder not in self._names:
            found: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as entries:
                    names = [entry.name for entry in entries if entry.is_file()]
            except (OSError, ValueError):
                names = []
            for name in names:
                for key in {_plain(name), _plain(os.path.splitext(name)[0])}:
                    found.setdefault(key, []).append(name)
            self._names[folder] = found
        return self._names[folder]


class Files:
    """The files that the cells of a table name.

    Attributes:
      base: the folder that the cells are relative to.
      root: the one that names in a listing are relative to: the table's, or one above it with all the files in it.

    Raises:
      UserError: files are not there, or a cell may mean several.
    """

    def __init__(self, table: Path, places: Places, cells: Sequence[str]):
        found = {base: [places.find(base, cell) for cell in cells] for base in places.bases}
        # The folder with all of them; where there is none, that with most.
        self.base = max(places.bases, key=lambda base: sum(path is not None for path in found[base]))
        paths = found[self.base]
        missing = [cell for cell, path in zip(cells, paths, strict=True) if path is None]
        if missing:
            raise UserError(
                f"{table}: {len(missing):,} of the {len(cells):,} files that it names are not there: {some(missing)}; "
                f"looked for in {', '.join(map(str, places.bases))}"
            )
        self._paths = [os.path.abspath(path) for path in paths if path is not None]
        folder = os.path.abspath(table.parent)
        self.root = Path(os.path.commonpath([folder, *map(os.path.dirname, self._paths)]))

    def labelled(self, labels: Sequence[str], parts: Sequence[str | None]) -> Iterator[LabelledFile]:
        """The files with their labels and parts, in the order of the cells."""
        base = os.path.abspath(self.base)
        for path, label, part in zip(self._paths, labels, parts, strict=True):
            name, key = (Path(os.path.relpath(path, start)).as_posix() for start in (self.root, base))
            yield LabelledFile(name, key, label, part)


def _composed(name: str) -> str:
    # macOS decomposes accents in file names.
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return _composed(name).casefold()
