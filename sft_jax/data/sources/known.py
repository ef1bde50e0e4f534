"""The kinds of sources that `config.data.source` can name, and how each is loaded."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sft_jax.data.dataset import Dataset
from sft_jax.data.images.reading import Reading
from sft_jax.data.sources.digits import load_digits
from sft_jax.data.sources.files import load_listing
from sft_jax.data.sources.huggingface.hub import check_hub, is_of_hub
from sft_jax.data.sources.labelling import LABELLINGS
from sft_jax.data.sources.listing import Listing, Record
from sft_jax.data.sources.lists import list_files
from sft_jax.data.sources.mask_folders import list_masks
from sft_jax.data.sources.masks import with_masks
from sft_jax.data.sources.overlap import check_positions
from sft_jax.data.sources.panoptic import list_panoptic
from sft_jax.data.sources.part_names import PARTS
from sft_jax.data.sources.texts.columns import Keys
from sft_jax.data.sources.texts.examples import Examples
from sft_jax.data.sources.texts.files import list_texts
from sft_jax.data.sources.texts.prepared import list_prepared
from sft_jax.data.sources.texts.source import load_texts
from sft_jax.data.sources.tfds import check_tfds, load_tfds, positions
from sft_jax.data.sources.tfds_masks import MaskRecords
from sft_jax.data.sources.tfds_records import ImageRecords, Records
from sft_jax.data.sources.voc import list_voc
from sft_jax.data.texts.reading import TextReading
from sft_jax.errors import UserError


def kind_of(config: ConfigDict) -> tuple[str, str]:
    """Splits `config.source` at its colon into kind and rest. Raises UserError if the kind is unknown."""
    kind, _, rest = config.source.partition(":")
    if kind not in SOURCES or (SOURCES[kind].is_named and not rest):
        path = Path(config.source)
        meant = "folder" if path.is_dir() else "csv" if path.is_file() else "tfds"
        near = "" if ":" in config.source else f"; did you mean {meant}:{config.source}?"
        forms = ", ".join(source.form for source in SOURCES.values())
        raise UserError(f"config.data.source={config.source!r} must be one of {forms}{near}")
    return kind, rest


def source_of(config: ConfigDict) -> "Source":
    """Returns the kind of source that `config`, the section `data`, names. Raises UserError if it is unknown."""
    return SOURCES[kind_of(config)[0]]


def check_kind(config: ConfigDict, *, of_texts: bool) -> None:
    """Raises UserError if the source of `config` has texts where images are wanted, or the other way round."""
    source = source_of(config)
    if not of_texts and not source.of_images:
        raise UserError(f"config.data.source={config.source} has texts, for --config.task=text or text_regression")
    if of_texts and not source.of_texts:
        forms = ", ".join(source.form for source in SOURCES.values() if source.of_texts)
        raise UserError(f"config.data.source={config.source} has images, but the task needs texts; use {forms}")


def check_of_images(config: ConfigDict) -> None:
    """Raises UserError if `config`, the whole configuration, is of texts where images are wanted."""
    check_kind(config.data, of_texts=False)
    if config.text.columns is not None:
        raise UserError("config.text.columns is for networks of texts, but this one takes images")


def check_labelling(config: ConfigDict, labelling: str) -> None:
    """Raises UserError if the source of `config` cannot have these labels."""
    own = source_of(config)
    if (labelling == "mask" and not own.of_masks) or (labelling != "mask" and own.has_masks):
        has = LABELLINGS["mask" if own.has_masks else "class"].words
        forms = ", ".join(source.form for source in SOURCES.values() if source.of_masks)
        remedy = f"use {forms}" if labelling == "mask" else "use --config.task=segmentation"
        raise UserError(
            f"config.data.source={config.source} has {has}, but the task needs {LABELLINGS[labelling].words}; {remedy}"
        )
    if labelling == "classes" and not own.has_several:
        able = ", ".join(source.form for source in SOURCES.values() if source.has_several)
        raise UserError(
            f"config.data.source={config.source} has {LABELLINGS['class'].words}, but the task needs "
            f"{LABELLINGS[labelling].words}; use {able}"
        )


def _place(named: str, recorded: Record | None, notices: list[str]) -> str:
    """Returns `named`, or the run's recorded path if `named` no longer exists, e.g. relative to another folder."""
    place = recorded.place if recorded else None
    if Path(named).exists() or not place or not Path(place).exists():
        return named
    reason = "" if is_of_hub(named) else f"{named} does not exist here; "
    notices.append(f"{reason}reading {place}, as recorded by the run")
    return place


def check_source(config: ConfigDict) -> tuple[bool, str]:
    """Returns whether the images of `config` (section `data`) are on this machine, and a description; takes seconds.

    Raises:
      UserError: the source is unknown or cannot be obtained.
    """
    kind, rest = kind_of(config)
    return SOURCES[kind].check(rest, config)


class Request(NamedTuple):
    """What `load_dataset` asks of a source.

    Attributes:
      reading: how images are read.
      once, recorded, resuming, old_seed, labelling, texts: see `load_dataset`.
    """

    reading: Reading
    once: bool
    recorded: Record | None
    resuming: bool
    old_seed: int | None
    labelling: str
    texts: TextReading | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of source.

    Attributes:
      form: what `data.source` looks like.
      load: (what follows the colon, the section `data`, request) -> the dataset. Raises UserError.
      check: (the same first two) -> whether it is on this machine, and a description. Raises UserError.
      is_named: whether something must follow the colon.
      has_splits: whether `data.train`, `data.validation` and `data.test` are split expressions that it understands.
      is_path: whether a path follows the colon, which may be moved between sessions of a run.
      of_files: whether images are brought to `data.size` as their files are decoded.
      has_several: whether an image may have any number of labels.
      of_images, of_masks, of_texts: whether it may have images, images with masks, and texts.
      list_masks: see `mask_folders.list_masks`, of sources whose images have masks, and nothing else; None of others.
    """

    form: str
    load: Callable[[str, ConfigDict, Request], Dataset]
    check: Callable[[str, ConfigDict], tuple[bool, str]]
    is_named: bool = True
    has_splits: bool = False
    is_path: bool = False
    of_files: bool = False
    has_several: bool = False
    of_images: bool = True
    of_masks: bool = False
    of_texts: bool = False
    list_masks: Callable[[Path, int | None, list[str]], Listing] | None = None

    @property
    def has_masks(self) -> bool:
        """Whether all images have masks."""
        return self.list_masks is not None


def _load_tfds(name: str, config: ConfigDict, request: Request) -> Dataset:
    notices: list[str] = []
    splits = (config.train, config.validation, config.test)
    named = dict(zip(PARTS, splits, strict=True))
    directory = config.dir and _place(config.dir, request.recorded, notices)
    where: dict[str, Any] = {"directory": directory, "download": config.download}
    if request.texts is not None:
        keys = Keys.of(config, request.texts.columns)
        examples = list_prepared(name, named, notices, keys, **where, labelling=request.labelling)
        dataset = _of_texts(examples, directory and str(Path(directory).absolute()), request, [])
    else:
        make: type[ImageRecords] = MaskRecords if request.labelling == "mask" else Records
        keys_of_images: dict[str, Any] = {"image_key": config.image_key, "label_key": config.label_key}
        how: dict[str, Any] = {"size": config.size, "reading": request.reading, "make": make}
        dataset = load_tfds(name, **where, splits=splits, **keys_of_images, **how)
    records = {part: positions(name, directory=directory, split=split) for part, split in named.items()}
    # An existing run has already passed this check.
    allowed = config.allow_overlap or request.once or request.recorded is not None
    unit = "image" if request.texts is None else "text"
    notices += check_positions(records, named, allow_overlap=allowed, unit=unit)
    return dataclasses.replace(dataset, notices=(*notices, *dataset.notices))


def _load_files(kind: str, path: str, config: ConfigDict, request: Request) -> Dataset:
    notices: list[str] = []
    place = _place(path, request.recorded, notices)
    return _read(list_files(kind, place, config, notices, labelling=request.labelling), config, request, notices)


def _load_masks(lister: Callable, path: str, config: ConfigDict, request: Request) -> Dataset:
    notices: list[str] = []
    listing = lister(Path(_place(path, request.recorded, notices)), config.ignore_index, notices)
    return with_masks(_read(listing, config, request, notices), listing, config.ignore_index)


def _read(listing: Listing, config: ConfigDict, request: Request, notices: list[str]) -> Dataset:
    return load_listing(
        listing,
        config.size,
        notices,
        reading=dataclasses.replace(request.reading, memory_bytes=0) if request.once else request.reading,
        recorded=request.recorded,
        resuming=request.resuming,
        old_seed=request.old_seed,
        allow_overlap=config.allow_overlap,
    )


def _load_texts(path: str, config: ConfigDict, request: Request) -> Dataset:
    assert request.texts is not None
    notices: list[str] = []
    place = Path(_place(path, request.recorded, notices))
    examples = list_texts(place, notices, Keys.of(config, request.texts.columns), labelling=request.labelling)
    return _of_texts(examples, str(place.absolute()), request, notices)


def _of_texts(examples: Examples, place: str | None, request: Request, notices: list[str]) -> Dataset:
    assert request.texts is not None
    return load_texts(examples, place, request.texts, notices, recorded=request.recorded, resuming=request.resuming)


def _load_digits(_: str, config: ConfigDict, request: Request) -> Dataset:
    square = dataclasses.replace(request.reading.square_of(config.size), keep_square=True)
    return dataclasses.replace(load_digits(config.source), square=square)


def _check_path(what: str, is_there: Callable[[Path], bool], path: str, config: ConfigDict) -> tuple[bool, str]:
    if not is_there(Path(path)):
        raise UserError(f"no such {what}: {path}")
    return True, f"the {what} exists"


_check_folder = functools.partial(_check_path, "folder", Path.is_dir)


def _check_huggingface(named: str, config: ConfigDict) -> tuple[bool, str]:
    if is_of_hub(named):
        return check_hub(named, download=config.download)
    return _check_path("folder", Path.exists, named, config)


def _of_masks(form: str, lister: Callable) -> Source:
    load = functools.partial(_load_masks, lister)
    return Source(form, load, _check_folder, is_path=True, of_files=True, of_masks=True, list_masks=lister)


# By what stands before the colon of `data.source`.
SOURCES: dict[str, Source] = {
    "tfds": Source(
        "tfds:NAME",
        _load_tfds,
        lambda name, config: check_tfds(name, directory=config.dir, download=config.download),
        has_splits=True,
        of_masks=True,
        of_texts=True,
    ),
    "folder": Source(
        "folder:PATH", functools.partial(_load_files, "folder"), _check_folder, is_path=True, of_files=True
    ),
    "csv": Source(
        "csv:FILE",
        functools.partial(_load_files, "csv"),
        functools.partial(_check_path, "table", Path.is_file),
        is_path=True,
        of_files=True,
        has_several=True,
    ),
    "hf": Source(
        "hf:PATH, hf://OWNER/NAME",
        functools.partial(_load_files, "hf"),
        _check_huggingface,
        is_path=True,
        of_files=True,
        has_several=True,
    ),
    "text": Source(
        "text:PATH",
        _load_texts,
        functools.partial(_check_path, "file or folder", Path.exists),
        is_path=True,
        of_images=False,
        of_texts=True,
    ),
    "masks": _of_masks("masks:PATH", list_masks),
    "voc": _of_masks("voc:PATH", list_voc),
    "panoptic": _of_masks("panoptic:PATH", list_panoptic),
    "digits": Source(
        "digits, digits:FIRST-LAST", _load_digits, lambda *_: (True, "comes with scikit-learn"), is_named=False
    ),
}
