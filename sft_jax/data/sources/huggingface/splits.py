"""Assigns files to splits as the library `datasets` does: by README.md, or by the names of folders and files."""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sft_jax.data.sources.listing import counted, some
from sft_jax.data.sources.part_names import part_of
from sft_jax.errors import UserError

# As in datasets.data_files; `eval` means test there.
KEYWORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATOR = r"[-._ 0-9]"
SHARD = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*")
COUNTED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)")


def split_files(root: Path, files: Sequence[str], notices: list[str]) -> dict[str, str | None]:
    """Maps the files of a set to their splits: "train", "val" or "test"; None if no file has one.

    Files in other splits, or in none although others have one, are left out.

    Args:
      root: the folder of the set.
      files: the files, relative to `root` with forward slashes.
      notices: receives a line about files that are left out.

    Raises:
      UserError: README.md is not valid or describes several sets, or a file is in two splits.
    """
    declared = _declared(root)
    named = _by_readme(root, declared, files) if declared.get("data_files") else None
    if named is None:
        below = declared.get("data_dir")
        if below:
            files = [file for file in files if PurePosixPath(file).is_relative_to(below)]
        named = _by_shards(files) or _by_folders(files) or _by_names(files) or dict.fromkeys(files)
    _check_complete(root, named)
    _tell(root, files, named, notices)
    return {file: _part(split) if split else None for file, split in named.items() if split is None or _part(split)}


def split_folders(root: Path, files: Sequence[str], notices: list[str]) -> dict[str, str | None]:
    """Maps files to the splits that folders above them are named after; otherwise like `split_files`."""
    named = _by_folders(files) or dict.fromkeys(files)
    _tell(root, files, named, notices)
    return dict(named)


def _check_complete(root: Path, files: Iterable[str]) -> None:
    """Raises UserError if shards such as NAME-00001-of-00003 are missing."""
    here: dict[tuple[str, str, str], set[int]] = {}
    for file in files:
        if match := COUNTED.fullmatch(file):
            here.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    for (start, count, end), numbers in here.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            names = [f"{start}-{number:05}-of-{count}{end}" for number in missing]
            raise UserError(f"{root} lacks {counted(len(missing), 'file')} of a split: {some(names)}; obtain it again")


def _tell(root: Path, files: Sequence[str], named: Mapping[str, str | None], notices: list[str]) -> None:
    outside = sorted(set(files) - set(named))
    if outside:
        notices.append(f"{root}: ignored, because not named like a split while others are: {some(outside)}")
    unknown = sorted({split for split in named.values() if split and not _part(split)})
    if unknown:
        notices.append(f"{root}: splits ignored that are none of train, validation and test: {some(unknown)}")


def _part(split: str) -> str | None:
    return next((part for part, words in KEYWORDS.items() if split in words), None) or part_of(split)


def _by_shards(files: Sequence[str]) -> dict[str, str | None]:
    return {file: match[1] for file in files if (match := SHARD.fullmatch(file))}


def _by_folders(files: Sequence[str]) -> dict[str, str | None]:
    return _by_keywords({file: PurePosixPath(file).parts[:-1] for file in files})


def _by_names(files: Sequence[str]) -> dict[str, str | None]:
    return _by_keywords({file: PurePosixPath(file).parts[-1:] for file in files})


def _by_keywords(words: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Maps the files of which one of the `words` contains a keyword to the split that it means."""
    patterns = {
        part: re.compile(rf"(.*{SEPARATOR})?({'|'.join(keywords)})({SEPARATOR}.*)?")
        for part, keywords in KEYWORDS.items()
    }
    named: dict[str, str | None] = {}
    for file, pieces in words.items():
        found = [part for part, pattern in patterns.items() if any(map(pattern.fullmatch, pieces))]
        if len(found) > 1:
            raise UserError(f"{file} is named like the splits {' and '.join(found)}; rename it or its folders")
        if found:
            named[file] = found[0]
    return named


# --- README.md


def _declared(root: Path) -> Mapping[str, Any]:
    """Returns the configuration that the YAML block of README.md describes; empty if there is none."""
    try:
        match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", (root / "README.md").read_text(errors="replace"), re.DOTALL)
        contents = yaml.safe_load(match[1]) if match else None
    except OSError:
        return {}
    except yaml.YAMLError as error:
        line = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{root / 'README.md'} begins with YAML that is not valid ({line}); repair or remove it"
        ) from None
    configs = contents.get("configs") if isinstance(contents, dict) else None
    configs = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    chosen = [entry for entry in configs if entry.get("default") or entry.get("config_name") == "default"]
    chosen = chosen or configs
    if len(chosen) > 1:
        names = [str(entry.get("config_name")) for entry in chosen]
        raise UserError(
            f"{root / 'README.md'} describes several sets, none of them the default: {some(names)}; name the folder "
            f"of one of them, hf:{root}/FOLDER"
        )
    return chosen[0] if chosen else {}


def _by_readme(root: Path, declared: Mapping[str, Any], files: Sequence[str]) -> dict[str, str | None]:
    """Maps files to the splits of the entry `data_files`."""
    entries = declared["data_files"]
    entries = entries if isinstance(entries, list) else [entries]
    named: dict[str, str | None] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, entry)
        for pattern in paths if isinstance(paths, list) else [paths]:
            matching = {
                PurePosixPath(path).as_posix() for path in glob.glob(str(pattern), root_dir=root, recursive=True)
            }
            if not matching:
                raise UserError(f"{root / 'README.md'} names {pattern} in data_files, which does not exist")
            for file in sorted(matching & set(files)):
                other = named.setdefault(file, split)
                if other != split:
                    raise UserError(f"{root / 'README.md'} has {file} in the splits {other} and {split}; keep one")
    return named
