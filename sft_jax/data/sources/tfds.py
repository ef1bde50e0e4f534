"""Datasets of tensorflow_datasets: locating and preparing them, choosing the features of images and targets."""

import contextlib
import difflib
import functools
import importlib.util
import logging
import socket
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sft_jax.config.shipped import install_command
from sft_jax.data.dataset import ArraySplit, Dataset, Split
from sft_jax.data.images.reading import PLAIN, Reading, streaming_notice
from sft_jax.data.images.square import Square
from sft_jax.data.images.survey import fit_notices
from sft_jax.data.sources.cache import cached, source_digest
from sft_jax.data.sources.tfds_prepared import first_line
from sft_jax.data.sources.tfds_records import ImageRecords, Records
from sft_jax.errors import UserError

# Seconds to wait for a host, to detect a missing connection early; tfds itself retries for minutes.
PROBE_SECONDS = 2.0
# The config keys under `data` that name splits.
SPLIT_KEYS = ("train", "validation", "test")
R = TypeVar("R", bound=ImageRecords)
# Marks the folder of a prepared version.
INFO = "dataset_info.json"


def load_tfds(
    name: str,
    *,
    directory: str | None,
    download: bool,
    splits: tuple[str, str, str],
    size: int,
    image_key: str | None = None,
    label_key: str | None = None,
    reading: Reading = PLAIN,
    make: type[ImageRecords] = Records,
) -> Dataset:
    """Loads the train, validation and test splits of the dataset `name`.

    Args:
      name: a dataset with an image and a label, e.g. "cifar10".
      directory: tfds's data_dir, or the folder of this dataset or of one of its versions; None for tfds's default.
      download: whether a dataset that is not prepared there may be downloaded and prepared.
      splits: split expressions in the syntax of tfds, e.g. "train[:45000]".
      size: side length in pixels to which images are resized; square images of one common size are left unchanged.
      image_key: the image feature; None for "image", or for the only feature of that kind.
      label_key: the feature of labels, or of masks, likewise.
      reading: how images are read; `on_error` and `max_pixels` apply to image files only.
      make: the class of its records, by which images have a label or a mask.

    Raises:
      UserError: the dataset or split is unknown, cannot be obtained, has not what `make` needs or is damaged.
    """
    where: dict[str, Any] = {"directory": directory, "download": download}
    records, notices = open_records(name, **where, image_key=image_key, label_key=label_key, reading=reading, make=make)
    counts = {split: records.count(key, split) for key, split in zip(SPLIT_KEYS, splits, strict=True)}
    square, side = records.square(size, reading)
    read: Callable[..., tuple[Split, np.ndarray]] = records.streamed
    if reading.must_stream(sum(counts.values()), side):
        notices.append(streaming_notice(sum(counts.values()), side))
    else:
        read = functools.partial(_in_memory, records, source_digest(records.folder))
    # A split that is named twice is read once.
    loaded = {split: read(key, split, square) for split, key in dict(zip(splits, SPLIT_KEYS, strict=True)).items()}
    if reading.square is None and not square.keep_square:
        _, sizes = loaded[splits[0]]
        notices += fit_notices(sizes, square)
    train, validation, test = (loaded[split][0] for split in splits)
    notices += records.notices
    return Dataset(train, validation, test, records.class_names, tuple(notices), square=square)


def open_records(
    name: str,
    *,
    directory: str | None,
    download: bool,
    image_key: str | None = None,
    label_key: str | None = None,
    reading: Reading = PLAIN,
    make: type[R] = Records,  # type: ignore[assignment]
) -> tuple[R, list[str]]:
    """Returns the records of a dataset, which is prepared if necessary, and notices about it.

    Arguments and errors are those of `load_tfds`.
    """
    builder, notices = prepared(name, directory=directory, download=download)
    return make(builder, name, *features_of(builder, name, image_key, label_key, make, notices), reading), notices


def prepared(name: str, *, directory: str | None, download: bool) -> tuple[Any, list[str]]:
    """Returns the builder of a dataset, which is prepared if necessary, and notices. See `load_tfds`."""
    builder, notices = _builder(name, directory)
    if not builder.info.splits:
        _prepare(builder, name, download)
    return builder, notices


def _in_memory(
    records: ImageRecords, source: str | None, key: str, split: str, square: Square
) -> tuple[ArraySplit, np.ndarray]:
    """Returns a split and the sizes of its images, cached under the dataset's digest `source` (None: not cached)."""
    read = functools.partial(records.decoded, key, split, square)
    keys = (split, *records.identity, repr(square))
    return records.in_memory(key, split, read() if source is None else cached((source, *keys), read))


def features_of(
    builder: Any,
    name: str,
    image_key: str | None,
    label_key: str | None,
    make: type[ImageRecords],
    notices: list[str],
) -> tuple[str, str]:
    """Returns the names of the features of images and of targets. Raises UserError."""
    import tensorflow_datasets as tfds

    features = builder.info.features or {}
    wanted = {"image": (image_key, (tfds.features.Image,)), make.target: (label_key, make.features())}
    chosen: dict[str, str] = {}
    for what, (key, kinds) in wanted.items():
        known = sorted(each for each in features if type(features[each]) in kinds and each not in chosen.values())
        setting = "image_key" if what == "image" else "label_key"
        if key is not None and key not in known:
            raise UserError(f"data.{setting}={key}: tfds:{name} has no such {what}; {_among(what, setting, known)}")
        if key is None and what in known:
            key = what
        if key is None and len(known) != 1:
            raise UserError(f"tfds:{name}: cannot tell which feature is the {what}; {_among(what, setting, known)}")
        if key is None:
            notices.append(f"tfds:{name}: using feature {known[0]!r} as the {what}")
        chosen[what] = key or known[0]
    return chosen["image"], chosen[make.target]


def _among(what: str, setting: str, known: list[str]) -> str:
    if not known:
        kinds = {"image": "an image", "label": "a class label", "mask": "a second image"}
        return f"none of its features is {kinds[what]}"
    return f"name it with --config.data.{setting}={known[0]} (available: {', '.join(known)})"


def check_tfds(name: str, *, directory: str | None, download: bool) -> tuple[bool, str]:
    """Returns whether the dataset is prepared, and a description of where it is or will come from.

    Takes seconds and reads no records. Arguments and errors are those of `load_tfds`.
    """
    builder, _ = _builder(name, directory)
    if builder.info.splits:
        return True, f"prepared in {builder.data_dir}"
    host = _check_obtainable(builder, name, download)
    return False, f"will be downloaded from {host} and prepared in {builder.data_dir_root}"


def _builder(name: str, directory: str | None) -> tuple[Any, list[str]]:
    """Returns the dataset's builder, and notices about its location. Raises UserError."""
    # Importing tfds takes half a second, which runs on other data should not pay.
    import tensorflow_datasets as tfds

    # Silences warnings about missing OpenCV, which makes no difference to decoding, and folders not created yet.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        builder = tfds.builder(name, data_dir=directory)
        if builder.info.splits:
            return builder, []
        problem = None
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"; did you mean tfds:{near[0]}?" if near else ""
        problem = UserError(f"tensorflow_datasets has no dataset {name!r}{hint}")
    except (ValueError, RuntimeError, AssertionError) as error:
        problem = UserError(f"tfds:{name} cannot be opened: {first_line(error)}{_versions(name, directory)}")
    own = None if directory is None else _in_its_own_folder(name, Path(directory))
    if own is not None:
        return own, [f"data.dir={directory} is the dataset's own folder; using {own.data_dir}"]
    if problem is not None:
        raise problem
    return builder, []


def _in_its_own_folder(name: str, folder: Path) -> Any | None:
    """Returns the newest matching version if `folder` is that of the dataset, a version or a configuration of it."""
    import tensorflow_datasets as tfds

    wanted, _, version = name.partition(":")
    builders = []
    for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}"):
        for info in folder.glob(pattern):
            try:
                builder = tfds.builder_from_directory(info.parent)
            except Exception:  # a file of that name may contain anything
                continue
            if wanted in (builder.name, _full_name(builder)) and builder.version.match(version or "*.*.*"):
                builders.append(builder)
    return max(builders, key=lambda builder: builder.version, default=None)


def _full_name(builder: Any) -> str:
    return "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))


def _versions(name: str, directory: str | None) -> str:
    """Lists the prepared versions of the dataset, for a message."""
    import tensorflow_datasets as tfds

    wanted = name.partition(":")[0]
    root = Path(directory or tfds.core.constants.DATA_DIR).expanduser() / wanted
    try:
        prepared = sorted(info.parent.name for info in root.glob(f"*/{INFO}"))
    except ValueError:  # Python 3.13 raises it for a null character in the name
        return ""
    if not prepared:
        return ""
    return f"; {root} has {', '.join(prepared)}: use tfds:{wanted}:{prepared[-1]}"


def _check_obtainable(builder: Any, name: str, download: bool) -> str:
    """Returns the host that serves a dataset which is not prepared. Raises UserError if it cannot be obtained."""
    where, remedy = _unprepared(builder, name)
    if not download:
        raise UserError(f"{where} and data.download is False; {remedy}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{where} and preparing it needs TensorFlow: {install_command('prepare')}; or {remedy}")
    host = _host(builder)
    if not reachable(host):
        raise UserError(
            f"{where} and {host}, which serves it, is unreachable; go online (preparing also needs "
            f"{install_command('prepare')}), or {remedy}"
        )
    return host


def _prepare(builder: Any, name: str, download: bool) -> None:
    import tensorflow_datasets as tfds

    _check_obtainable(builder, name, download)
    where, remedy = _unprepared(builder, name)
    tfds.disable_progress_bar()  # the console shows a status of its own
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # downloads, archives and TensorFlow may raise anything
        raise UserError(f"{where} and preparing it failed: {first_line(error)}; or {remedy}") from error


def _unprepared(builder: Any, name: str) -> tuple[str, str]:
    return (
        f"the dataset {name} is not prepared in {builder.data_dir_root}{_versions(name, str(builder.data_dir_root))}",
        "name the folder of a prepared copy with --config.data.dir=FOLDER",
    )


def _host(builder: Any) -> str:
    hosts = [urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()]
    return next((host for host in hosts if host), "storage.googleapis.com")


def reachable(host: str) -> bool:
    """Returns whether `host` accepts a connection within `PROBE_SECONDS`."""
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, 443), timeout=PROBE_SECONDS):
            answered.set()

    # Name resolution has no timeout: if it hangs, the daemon thread is abandoned and does not block exit.
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


def split_names(name: str, *, directory: str | None, download: bool) -> list[str]:
    """Returns the dataset's splits, preparing it if necessary. Arguments and errors are those of `load_tfds`."""
    builder, _ = prepared(name, directory=directory, download=download)
    return list(builder.info.splits)


def positions(name: str, *, directory: str | None, split: str) -> dict[str, list[range]]:
    """Maps each file to its records that are in `split`; empty if there is no such split. Raises like `load_tfds`."""
    ranges: dict[str, list[range]] = {}
    try:
        for part in _builder(name, directory)[0].info.splits[split].file_instructions:
            count = part.examples_in_shard - part.skip if part.take < 0 else part.take
            ranges.setdefault(part.filename, []).append(range(part.skip, part.skip + count))
    except (KeyError, ValueError, AssertionError):
        return {}  # `load_tfds` reports the error
    return ranges
