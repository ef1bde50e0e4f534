"""Image-classification sets of tensorflow_datasets: where they are, how they are prepared, which features are meant."""

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
from typing import Any

import numpy as np

from sft_jax.config.shipped import install_command
from sft_jax.data.dataset import ArraySplit, Dataset, Split
from sft_jax.data.images.reading import PLAIN, Reading, streaming_notice
from sft_jax.data.images.square import Square
from sft_jax.data.images.survey import fit_notices
from sft_jax.data.sources.cache import kept, source_digest
from sft_jax.data.sources.tfds_records import Records, first_line
from sft_jax.errors import UserError

# Seconds within which a machine that is offline is found out, where tfds itself tries for minutes.
PROBE_SECONDS = 2.0
# The settings that name splits.
SPLIT_KEYS = ("train", "validation", "test")
# Of a prepared version, in its folder.
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
) -> Dataset:
    """Reads the train, validation and test splits of the set `name`.

    Args:
      name: of a set with an image and a label, for instance "cifar10".
      directory: tfds's data_dir, or the folder of this set or of one of its versions; None for tfds's default.
      download: whether a set that is not prepared there may be downloaded and prepared.
      splits: expressions as tfds writes them, for instance "train[:45000]".
      size: side in pixels to which images are brought, unless all have one size and are square: those stay as they are.
      image_key: name of the image's feature; None for "image", or for the only one of that kind.
      label_key: likewise of the label.
      reading: how images are read; `on_error` and `max_pixels` are for files.

    Raises:
      UserError: unknown set or split, not prepared and not to be had, no image classification, damaged files.
    """
    builder, notices = _builder(name, directory)
    if not builder.info.splits:
        _prepare(builder, name, download)
    records = Records(builder, name, *_keys(builder, name, image_key, label_key, notices), reading.progress)
    counts = {split: records.count(key, split) for key, split in zip(SPLIT_KEYS, splits, strict=True)}
    square, side = records.square(size, reading)
    read: Callable[..., tuple[Split, np.ndarray]] = records.streamed
    if reading.must_stream(sum(counts.values()), side):
        notices.append(streaming_notice(sum(counts.values()), side))
    else:
        read = functools.partial(_in_memory, records, source_digest(Path(builder.data_dir)))
    # The same split may be wanted twice: it is read once.
    found = {split: read(key, split, square) for split, key in dict(zip(splits, SPLIT_KEYS, strict=True)).items()}
    if reading.square is None and not square.keep_square:
        _, sizes = found[splits[0]]
        notices += fit_notices(sizes, square)
    train, validation, test = (found[split][0] for split in splits)
    return Dataset(train, validation, test, records.class_names, tuple(notices), square=square)


def _in_memory(
    records: Records, source: str | None, key: str, split: str, square: Square
) -> tuple[ArraySplit, np.ndarray]:
    """A split and the sizes of its images, from the cache where the set, whose digest is `source`, was read before."""
    read = functools.partial(records.decoded, key, split, square)
    keys = (split, records.image_key, records.label_key, repr(square))
    arrays = read() if source is None else kept((source, *keys), read)
    return ArraySplit.of_images(arrays["images"], arrays["labels"]), arrays["sizes"]


def _keys(builder: Any, name: str, image_key: str | None, label_key: str | None, notices: list[str]) -> tuple[str, str]:
    """The names of the features of image and label. Raises UserError."""
    import tensorflow_datasets as tfds

    kinds = {"image": (image_key, tfds.features.Image), "label": (label_key, tfds.features.ClassLabel)}
    features = builder.info.features or {}
    chosen = {}
    for what, (key, kind) in kinds.items():
        known = sorted(feature for feature in features if type(features[feature]) is kind)
        if key is not None and key not in known:
            raise UserError(f"data.{what}_key={key}: tfds:{name} has no such {what}; {_among(what, known)}")
        if key is None and what in known:
            key = what
        if key is None and len(known) != 1:
            raise UserError(
                f"tfds:{name} is no image-classification set as it is: which of its features is the {what}? "
                f"{_among(what, known)}"
            )
        if key is None:
            notices.append(f"the {what} of tfds:{name} is its feature {known[0]!r}")
        chosen[what] = key or known[0]
    return chosen["image"], chosen["label"]


def _among(what: str, known: list[str]) -> str:
    if not known:
        return f"none of them is {'an image' if what == 'image' else 'a class label'}"
    return f"name it with --config.data.{what}_key={known[0]} (there are {', '.join(known)})"


def check_tfds(name: str, *, directory: str | None, download: bool) -> tuple[bool, str]:
    """Whether the set is prepared, and in words where it is or comes from; in seconds, nothing is read.

    Arguments and errors are those of `load_tfds`.
    """
    builder, _ = _builder(name, directory)
    if builder.info.splits:
        return True, f"prepared in {builder.data_dir}"
    host = _check_obtainable(builder, name, download)
    return False, f"will be downloaded from {host} and prepared in {builder.data_dir_root}"


def _builder(name: str, directory: str | None) -> tuple[Any, list[str]]:
    """The set's builder, and what to say about where it was found. Raises UserError."""
    # Importing tfds takes half a second that runs on other data need not pay.
    import tensorflow_datasets as tfds

    # It warns of a missing OpenCV, which would decode no differently, and of folders that are not there yet.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        builder = tfds.builder(name, data_dir=directory)
        if builder.info.splits:
            return builder, []
        problem = None
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"; did you mean tfds:{near[0]}?" if near else ""
        problem = UserError(f"tensorflow_datasets knows no data set {name!r}{hint}")
    except (ValueError, RuntimeError, AssertionError) as error:
        problem = UserError(f"tfds:{name} cannot be opened: {first_line(error)}{_versions(name, directory)}")
    found = None if directory is None else _in_its_own_folder(name, Path(directory))
    if found is not None:
        return found, [f"data.dir={directory} is a folder of the set itself: {found.data_dir} is used"]
    if problem is not None:
        raise problem
    return builder, []


def _in_its_own_folder(name: str, folder: Path) -> Any | None:
    """The set where `folder` is its own, or that of a version or configuration; the newest version that fits."""
    import tensorflow_datasets as tfds

    wanted, _, version = name.partition(":")
    found = []
    for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}"):
        for info in folder.glob(pattern):
            try:
                builder = tfds.builder_from_directory(info.parent)
            except Exception:  # whatever a file of that name may hold
                continue
            if wanted in (builder.name, _full_name(builder)) and builder.version.match(version or "*.*.*"):
                found.append(builder)
    return max(found, key=lambda builder: builder.version, default=None)


def _full_name(builder: Any) -> str:
    return "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))


def _versions(name: str, directory: str | None) -> str:
    """Which versions of the set are prepared, for a message."""
    import tensorflow_datasets as tfds

    wanted = name.partition(":")[0]
    root = Path(directory or tfds.core.constants.DATA_DIR).expanduser() / wanted
    try:
        prepared = sorted(info.parent.name for info in root.glob(f"*/{INFO}"))
    except ValueError:  # no folder has such a name, says Python 3.13 of a null character
        return ""
    if not prepared:
        return ""
    return f"; in {root} there is {', '.join(prepared)}: use tfds:{wanted}:{prepared[-1]}"


def _check_obtainable(builder: Any, name: str, download: bool) -> str:
    """The host that a set which is not prepared comes from. Raises UserError where it cannot be had."""
    where, remedy = _unprepared(builder, name)
    if not download:
        raise UserError(f"{where} and data.download is off; {remedy}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{where} and preparing it needs TensorFlow: {install_command('prepare')}; or {remedy}")
    host = _host(builder)
    if not reachable(host):
        raise UserError(
            f"{where} and {host} cannot be reached to download it; go online (preparing also needs "
            f"{install_command('prepare')}), or {remedy}"
        )
    return host


def _prepare(builder: Any, name: str, download: bool) -> None:
    import tensorflow_datasets as tfds

    _check_obtainable(builder, name, download)
    where, remedy = _unprepared(builder, name)
    tfds.disable_progress_bar()  # the console's status moves meanwhile
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever a download, an archive or TensorFlow may raise
        raise UserError(f"{where} and preparing it failed: {first_line(error)}; or {remedy}") from error


def _unprepared(builder: Any, name: str) -> tuple[str, str]:
    return (
        f"the data set {name} is not prepared in {builder.data_dir_root}{_versions(name, str(builder.data_dir_root))}",
        "name the folder of a prepared copy with --config.data.dir=FOLDER",
    )


def _host(builder: Any) -> str:
    hosts = [urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()]
    return next((host for host in hosts if host), "storage.googleapis.com")


def reachable(host: str) -> bool:
    """Whether `host` answers, within `PROBE_SECONDS`."""
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, 443), timeout=PROBE_SECONDS):
            answered.set()

    # The name look-up has no time limit of its own: where it hangs, its thread is left behind, and does not keep the
    # program from ending.
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


def split_names(name: str, *, directory: str | None, download: bool) -> list[str]:
    """The splits of the set, which is prepared where that is needed. Arguments and errors are those of `load_tfds`."""
    builder, _ = _builder(name, directory)
    if not builder.info.splits:
        _prepare(builder, name, download)
    return list(builder.info.splits)


def positions(name: str, *, directory: str | None, split: str) -> dict[str, list[range]]:
    """File -> the records of it that `split` has; nothing where there is no such split. Raises as `load_tfds`."""
    found: dict[str, list[range]] = {}
    try:
        for part in _builder(name, directory)[0].info.splits[split].file_instructions:
            count = part.examples_in_shard - part.skip if part.take < 0 else part.take
            found.setdefault(part.filename, []).append(range(part.skip, part.skip + count))
    except (KeyError, ValueError, AssertionError):
        return {}  # `load_tfds` says what is wrong with it
    return found
