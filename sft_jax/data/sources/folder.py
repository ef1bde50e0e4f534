"""The folder source: one folder per class, optionally inside one folder per split."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sft_jax.data.dataset import Dataset
from sft_jax.data.images.files import Found, find_images, is_ignored, is_image_file, left_out, subfolders
from sft_jax.data.sources.files import load_listing
from sft_jax.data.sources.listing import LabelledFile, Listing, counted, some
from sft_jax.data.sources.mask_folders import IMAGES, MASKS
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.errors import UserError

# Folder names that need no notice.
USUAL = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def load_folder(path: str | Path, size: int, **settings: Any) -> Dataset:
    """Loads the images of a folder; `settings` are those of `load_listing`. Raises UserError."""
    notices: list[str] = []
    return load_listing(list_folder(Path(path), notices), size, notices, **settings)


def list_folder(root: Path, notices: list[str], known: Collection[str] | None = None) -> Listing:
    """Lists ROOT/train/CLASS/* and the other splits likewise (see `part_of`), or ROOT/CLASS/* if there are no splits.

    Args:
      root: the folder.
      notices: receives a line about anything that is ignored or ambiguous.
      known: classes of a network to be evaluated; ROOT may then have a single class, or no train split.

    Raises:
      UserError: no images, fewer than two classes, an empty or unknown class, or an ambiguous layout.
    """
    if root.is_file():
        hint = f"use csv:{root}" if root.suffix.lower() in (".csv", ".tsv") else "unpack it and name the folder"
        raise UserError(f"data.source=folder:{root} is a file; {hint}")
    if not root.is_dir():
        raise UserError(f"data.source=folder:{root}: no such folder")
    try:
        return _Folder(root, notices, known).listing()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


class _Folder:
    """Lists a folder, scanning each class folder only once."""

    def __init__(self, root: Path, notices: list[str], known: Collection[str] | None):
        self.root, self.notices, self.known = root, notices, known
        self._scanned: dict[Path, Found] = {}

    def listing(self) -> Listing:
        named = [
            (self._unwrapped(folder, part_of(folder.name)), part_of(folder.name)) for folder in subfolders(self.root)
        ]
        labelled = {part for folder, part in named if part and self._has_classes(folder)}
        whole = "train" in labelled
        if self.known is not None and labelled:
            # For evaluation, any split will do.
            whole = whole or not any(part is None and self._holds_images(folder) for folder, part in named)
        parts = self._parts(named) if whole else {}
        classes = [] if whole else self._classes(named, parts)
        class_names = self._class_names(parts.get("train", self.root), parts, classes)
        files: list[LabelledFile] = []
        if not whole:
            files += self._files(classes, self.root, None)
        for part, folder in parts.items():
            here = self._labelled(folder, class_names)
            files += self._files(here, folder, part)
        return Listing(self.root, self.root, class_names, files)

    # --- Splits and classes at the top level

    def _parts(self, named: list[tuple[Path, str | None]]) -> dict[str, Path]:
        """Returns the folder of each split; any other one gives a notice, or an error if it contains images."""
        parts: dict[str, Path] = {}
        for folder, part in named:
            if not self._holds_images(folder):
                if part:
                    self._say(f"{folder} ignored: it contains no images")
            elif part is None:
                raise UserError(
                    f"{folder}, next to the train folder, contains images but is not named like a split; rename it to "
                    f"train, val or test, move it into a split as one of its classes, or move it elsewhere"
                )
            elif part in parts:
                raise _twice(parts[part], folder, part)
            elif not self._has_classes(folder):
                self._say(
                    f"{folder} ignored: it has {counted(len(self._direct(folder)))} but no class folders, hence no "
                    f"labels"
                )
            else:
                parts[part] = folder
        self._loose(self.root)
        unusual = [
            f"{folder.relative_to(self.root)} ({part})"
            for part, folder in parts.items()
            if folder.name.lower() not in USUAL[part]
        ]
        if unusual:
            self._say(f"folders used as splits: {', '.join(unusual)}")
        return {part: parts[part] for part in PARTS if part in parts}

    def _classes(self, named: list[tuple[Path, str | None]], parts: dict[str, Path]) -> list[Path]:
        """Returns the class folders directly in a root without a train split; adds val and test to `parts`."""
        classes = [folder for folder, part in named if part is None]
        unclear = [(folder, part) for folder, part in named if part is not None]
        for folder, part in unclear:
            if self._has_classes(folder):
                if part in parts:
                    raise _twice(parts[part], folder, part)
                parts[part] = folder
        names = {folder.name for part in parts.values() for folder in subfolders(part)} | set(self.known or ())
        for folder, part in unclear:
            if folder in parts.values():
                continue
            if not self._holds_images(folder):
                self._say(f"{folder} ignored: it contains no images")
            elif folder.name in names:
                classes.append(folder)
            elif self.known is not None:
                self._say(f"{folder} ignored: it is not one of the network's classes, so its images have no labels")
            elif classes and (part == "train" or len(classes) == 1):
                self._say(f"{folder} contains images but no class folders: used as a class, not as the {part} split")
                classes.append(folder)
            elif classes:
                raise UserError(
                    f"{folder} may be a class or unlabelled images; move the class folders into "
                    f"{self.root / 'train'}, and {folder.name} too if it is a class, otherwise elsewhere"
                )
        self._loose(self.root)
        return sorted(classes)

    def _unwrapped(self, folder: Path, part: str | None) -> Path:
        """Returns the only subfolder of a split if it names the same split, as in Kaggle archives, else `folder`."""
        inside = subfolders(folder) if part else []
        if len(inside) == 1 and part_of(inside[0].name) == part and not self._direct(folder):
            return inside[0]
        return folder

    # --- Classes

    def _class_names(self, whole: Path, parts: dict[str, Path], classes: list[Path]) -> tuple[str, ...]:
        if self.known is not None:
            folders = classes + [folder for part in parts.values() for folder in subfolders(part)]
            names = sorted({folder.name for folder in folders if self._images(folder)})
        else:
            folders = subfolders(whole) if "train" in parts else classes
            names = [folder.name for folder in folders]
        if set(names) == {IMAGES, MASKS}:
            raise UserError(
                f"{whole} has folders {IMAGES} and {MASKS}, which are no classes: use data.source=masks:{self.root} "
                f"with task=segmentation"
            )
        self._check_count(whole, folders, names)
        for folder in folders:
            if any("\ud800" <= character <= "\udfff" for character in folder.name):
                raise UserError(f"class name is not valid UTF-8: {str(folder)!r}; rename the folder")
            if self.known is None and not self._images(folder):
                others = self._scan(folder).others
                what = f" ({left_out(others)})" if others else ""
                raise UserError(f"{folder} contains no images{what}; add some, or remove the folder")
        folded: dict[str, str] = {}
        for name in names:
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                self._say(f"classes {other!r} and {name!r} differ only in case; treated as two classes")
        return tuple(names)

    def _check_count(self, whole: Path, folders: list[Path], names: list[str]) -> None:
        if len(names) >= (2 if self.known is None else 1):
            return
        least = ", at least two" if self.known is None else ""
        if not names:
            tables = sorted(path for path in self.root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
            hint = f"; if {tables[0].name} has the labels, use --config.data.source=csv:{tables[0]}" if tables else ""
            if any(self.root.rglob("*.parquet")) or any(self.root.rglob("metadata.*")):
                hint = f"; if it is a set of Hugging Face, use --config.data.source=hf:{self.root}"
            raise UserError(f"{whole} needs one folder of images per class{least}; found none{hint}")
        inside = [folder.name for folder in subfolders(folders[0]) if self._holds_images(folder)]
        hint = ""
        if len(inside) > 1:
            hint = (
                f", which contains {some(inside)}: if these are the classes, use "
                f"--config.data.source=folder:{folders[0]}"
            )
        raise UserError(f"{whole} needs one folder of images per class{least}; found only {names[0]!r}{hint}")

    def _labelled(self, folder: Path, class_names: tuple[str, ...]) -> list[Path]:
        """Returns the class folders of a split. Raises UserError if one is not a known class."""
        self._loose(folder)
        here = [inner for inner in subfolders(folder) if self._images(inner)]
        unknown = [inner.name for inner in here if inner.name not in class_names]
        if unknown:
            folded = {name.casefold(): name for name in class_names}
            same = [f"{name!r} is {folded[name.casefold()]!r} there" for name in unknown if name.casefold() in folded]
            hint = f" (names are case-sensitive: {some(same)})" if same else ""
            raise UserError(
                f"{folder} has classes that are not in the training split: {some(map(repr, unknown))}{hint}; rename or "
                f"remove them, or put unlabelled images directly into {folder}"
            )
        return here

    # --- Files

    def _files(self, classes: list[Path], folder: Path, part: str | None) -> Iterator[LabelledFile]:
        others: list[Path] = []
        for inner in classes:
            scanned = self._scan(inner)
            others += scanned.others
            for path in scanned.images:
                name, key = (path.relative_to(start).as_posix() for start in (self.root, folder))
                yield LabelledFile(name, key, inner.name, part)
        if others:
            self._say(left_out(others))

    def _scan(self, folder: Path) -> Found:
        if folder not in self._scanned:
            self._scanned[folder] = find_images(folder)
        return self._scanned[folder]

    def _images(self, folder: Path) -> list[Path]:
        return self._scan(folder).images

    def _holds_images(self, folder: Path) -> bool:
        return bool(self._direct(folder)) or self._has_classes(folder)

    def _has_classes(self, folder: Path) -> bool:
        return any(self._images(inner) for inner in subfolders(folder))

    def _direct(self, folder: Path) -> list[Path]:
        """Returns the images in `folder` itself, not in subfolders."""
        entries = (path for path in folder.iterdir() if not is_ignored(path.name))
        return [path for path in entries if is_image_file(path)]

    def _loose(self, folder: Path) -> None:
        images = self._direct(folder)
        if images:
            self._say(f"{counted(len(images))} directly in {folder} ignored: not in a class folder")

    def _say(self, line: str) -> None:
        self.notices.append(line)


def _twice(one: Path, other: Path, part: str) -> UserError:
    return UserError(f"{one} and {other} both look like the {part} split; keep one, or merge them")
