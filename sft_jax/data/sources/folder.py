"""Your own images: a folder for each class, in folders for the parts or in none."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sft_jax.data.dataset import Dataset
from sft_jax.data.images.files import Found, find_images, is_ignored, is_image_file, left_out, subfolders
from sft_jax.data.sources.files import load_listing
from sft_jax.data.sources.listing import LabelledFile, Listing, counted, some
from sft_jax.data.sources.part_names import PARTS, part_of
from sft_jax.errors import UserError

# What the folder of a part is called in messages.
USUAL = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def load_folder(path: str | Path, size: int, **settings: Any) -> Dataset:
    """The images that `list_folder` finds; `settings` are those of `load_listing`. Raises UserError as both do."""
    notices: list[str] = []
    return load_listing(list_folder(Path(path), notices), size, notices, **settings)


def list_folder(root: Path, notices: list[str], known: Collection[str] | None = None) -> Listing:
    """Finds ROOT/train/CLASS/*, and the other parts likewise (see `part_of`), or ROOT/CLASS/* where there are no parts.

    Args:
      root: the folder.
      notices: gets a line about each thing that is left out, or that might have been meant otherwise.
      known: the classes of a network that is to be scored: ROOT may then hold a single class, or no train part.

    Raises:
      UserError: nothing there, fewer than two classes, an empty class, unknown classes, or parts that are not clear.
    """
    if root.is_file():
        hint = f"use csv:{root}" if root.suffix.lower() in (".csv", ".tsv") else "unpack it, and name the folder"
        raise UserError(f"data.source=folder:{root}: that is a file; {hint}")
    if not root.is_dir():
        raise UserError(f"data.source=folder:{root}: there is no such folder")
    try:
        return _Folder(root, notices, known).listing()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


class _Folder:
    """One reading of a folder, in which no class is looked through twice."""

    def __init__(self, root: Path, notices: list[str], known: Collection[str] | None):
        self.root, self.notices, self.known = root, notices, known
        self._found: dict[Path, Found] = {}

    def listing(self) -> Listing:
        named = [
            (self._unwrapped(folder, part_of(folder.name)), part_of(folder.name)) for folder in subfolders(self.root)
        ]
        labelled = {part for folder, part in named if part and self._has_classes(folder)}
        whole = "train" in labelled
        if self.known is not None and labelled:
            # Of images to be scored, any part will do.
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

    # --- Which folder is what

    def _parts(self, named: list[tuple[Path, str | None]]) -> dict[str, Path]:
        """The folder of each part; every other one is named in a notice, or refused where it holds images."""
        parts: dict[str, Path] = {}
        for folder, part in named:
            if not self._holds_images(folder):
                if part:
                    self._say(f"{folder} holds no image and was left out")
            elif part is None:
                raise UserError(
                    f"{folder} lies beside the training images, holds images and is no part by its name; call it "
                    f"train, val or test, move it into the folder of a part as one of its classes, or move it elsewhere"
                )
            elif part in parts:
                raise _twice(parts[part], folder, part)
            elif not self._has_classes(folder):
                self._say(
                    f"{folder} has {counted(len(self._direct(folder)))} and no folders of classes: without labels they "
                    f"are of no use here and were left out"
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
            self._say(f"folders taken for parts: {', '.join(unusual)}")
        return {part: parts[part] for part in PARTS if part in parts}

    def _classes(self, named: list[tuple[Path, str | None]], parts: dict[str, Path]) -> list[Path]:
        """The folders of classes directly in the root, where there is no train part; `parts` gets val and test."""
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
                self._say(f"{folder} holds no image and was left out")
            elif folder.name in names:
                classes.append(folder)
            elif self.known is not None:
                self._say(f"{folder} is none of the network's classes; its images have no labels and were left out")
            elif classes and (part == "train" or len(classes) == 1):
                self._say(
                    f"{folder} holds images and no folders of classes: taken for a class, not for the {part} part"
                )
                classes.append(folder)
            elif classes:
                raise UserError(
                    f"{folder} may be a class or images without labels; move the folders of the classes into "
                    f"{self.root / 'train'}, and {folder.name} too if it is one, else elsewhere"
                )
        self._loose(self.root)
        return sorted(classes)

    def _unwrapped(self, folder: Path, part: str | None) -> Path:
        """What is in `folder` where that holds but a folder for the same part, as archives of Kaggle do."""
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
        self._check_count(whole, folders, names)
        for folder in folders:
            if any("\ud800" <= character <= "\udfff" for character in folder.name):
                raise UserError(f"the name of a class is no UTF-8: {str(folder)!r}; rename the folder")
            if self.known is None and not self._images(folder):
                others = self._look(folder).others
                what = f" ({left_out(others)})" if others else ""
                raise UserError(f"there is no image in {folder}{what}; add some, or remove the folder")
        folded: dict[str, str] = {}
        for name in names:
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                self._say(f"the classes {other!r} and {name!r} differ in capitals only: they are two")
        return tuple(names)

    def _check_count(self, whole: Path, folders: list[Path], names: list[str]) -> None:
        if len(names) >= (2 if self.known is None else 1):
            return
        least = "at least two classes" if self.known is None else "the classes"
        if not names:
            tables = sorted(path for path in self.root.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
            hint = f"; if {tables[0].name} has the labels: --config.data.source=csv:{tables[0]}" if tables else ""
            raise UserError(f"{whole} needs a folder of images for each of {least}; found none{hint}")
        inside = [folder.name for folder in subfolders(folders[0]) if self._holds_images(folder)]
        hint = ""
        if len(inside) > 1:
            hint = (
                f", and in it {some(inside)}: if these are what is meant, use --config.data.source=folder:{folders[0]}"
            )
        raise UserError(f"{whole} needs a folder of images for each of {least}; found only {names[0]!r}{hint}")

    def _labelled(self, folder: Path, class_names: tuple[str, ...]) -> list[Path]:
        """The folders of classes of a part. Raises UserError where one is unknown."""
        self._loose(folder)
        here = [inner for inner in subfolders(folder) if self._images(inner)]
        unknown = [inner.name for inner in here if inner.name not in class_names]
        if unknown:
            folded = {name.casefold(): name for name in class_names}
            same = [f"{name!r} is {folded[name.casefold()]!r} there" for name in unknown if name.casefold() in folded]
            hint = f" (capitals count: {some(same)})" if same else ""
            raise UserError(
                f"{folder} has classes that are none of those of training: {some(map(repr, unknown))}{hint}; rename or "
                f"remove them, or put images without labels directly into {folder}"
            )
        return here

    # --- Files

    def _files(self, classes: list[Path], folder: Path, part: str | None) -> Iterator[LabelledFile]:
        others: list[Path] = []
        for inner in classes:
            found = self._look(inner)
            others += found.others
            for path in found.images:
                name, key = (path.relative_to(start).as_posix() for start in (self.root, folder))
                yield LabelledFile(name, key, inner.name, part)
        if others:
            self._say(left_out(others))

    def _look(self, folder: Path) -> Found:
        if folder not in self._found:
            self._found[folder] = find_images(folder)
        return self._found[folder]

    def _images(self, folder: Path) -> list[Path]:
        return self._look(folder).images

    def _holds_images(self, folder: Path) -> bool:
        return bool(self._direct(folder)) or self._has_classes(folder)

    def _has_classes(self, folder: Path) -> bool:
        return any(self._images(inner) for inner in subfolders(folder))

    def _direct(self, folder: Path) -> list[Path]:
        """Images in `folder` itself."""
        entries = (path for path in folder.iterdir() if not is_ignored(path.name))
        return [path for path in entries if is_image_file(path)]

    def _loose(self, folder: Path) -> None:
        images = self._direct(folder)
        if images:
            self._say(f"{counted(len(images))} directly in {folder}, in no folder of a class, left out")

    def _say(self, line: str) -> None:
        self.notices.append(line)


def _twice(one: Path, other: Path, part: str) -> UserError:
    return UserError(f"{one} and {other} are both taken for the {part} part; keep one, or bring them together")
