"""Image-classification sets of tensorflow_datasets, read without TensorFlow where they are prepared as ArrayRecord."""

import contextlib
import difflib
import functools
import importlib.util
import logging
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.data.images import array_to_square
from sft_jax.data.kept import kept, source_digest
from sft_jax.data.types import ArraySplit, Dataset
from sft_jax.errors import UserError

# Seconds within which a machine that is offline is found out, where tfds itself tries for minutes.
PROBE_SECONDS = 2.0
# Records decoded at a time: few enough that their dictionaries cost little memory beside the arrays.
BLOCK = 4096


def load_tfds(name: str, *, directory: str | None, download: bool, splits: tuple[str, str, str], size: int) -> Dataset:
    """Reads the train, validation and test splits of the set `name` into memory.

    Args:
      name: of a set with the features `image` and `label`, for instance "cifar10".
      directory: tfds's data_dir; None for its default.
      download: whether a set that is not prepared there may be downloaded and prepared.
      splits: expressions as tfds writes them, for instance "train[:45000]".
      size: images of sets whose images differ in size are brought to this side in pixels; others stay as they are.

    Raises:
      UserError: unknown set or split, not prepared and not to be had, no image classification, damaged files.
    """
    builder = _builder(name, directory)
    if not builder.info.splits:
        _prepare(builder, name, download)
    features = builder.info.features
    if features is None or not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"tfds:{name} is no image-classification set: it has no features 'image' and 'label'")
    class_names = tuple(features["label"].names)
    source = source_digest(Path(builder.data_dir))

    @functools.cache  # the same split may be wanted twice
    def read(split: str) -> ArraySplit:
        decode = functools.partial(_read, builder, name, split, len(class_names), size)
        return decode() if source is None else kept((source, split, str(size)), decode)

    train, validation, test = map(read, splits)
    return Dataset(train, validation, test, class_names, notices=())


def check_tfds(name: str, *, directory: str | None, download: bool) -> tuple[bool, str]:
    """Whether the set is prepared, and in words where it is or comes from; in seconds, nothing is read.

    Arguments and errors are those of `load_tfds`.
    """
    builder = _builder(name, directory)
    if builder.info.splits:
        return True, f"prepared in {builder.data_dir}"
    host = _check_obtainable(builder, name, download)
    return False, f"will be downloaded from {host} and prepared in {builder.data_dir_root}"


def _builder(name: str, directory: str | None) -> Any:
    # Importing tfds takes half a second that runs on other data need not pay.
    import tensorflow_datasets as tfds

    # It warns of a missing OpenCV, which would decode no differently, and of folders that are not there yet.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"; did you mean tfds:{near[0]}?" if near else ""
        raise UserError(f"tensorflow_datasets knows no data set {name!r}{hint}") from None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"tfds:{name} cannot be opened: {_first_line(error)}") from None


def _check_obtainable(builder: Any, name: str, download: bool) -> str:
    """The host that a set which is not prepared comes from. Raises UserError where it cannot be had."""
    where, remedy = _unprepared(builder, name)
    if not download:
        raise UserError(f"{where} and data.download is off; {remedy}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{where} and preparing it needs TensorFlow: pip install -e '.[prepare]'; or {remedy}")
    host = _host(builder)
    if not reachable(host):
        raise UserError(
            f"{where} and {host} cannot be reached to download it; go online (preparing also needs "
            f"pip install -e '.[prepare]'), or {remedy}"
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
        raise UserError(f"{where} and preparing it failed: {_first_line(error)}; or {remedy}") from error


def _unprepared(builder: Any, name: str) -> tuple[str, str]:
    return (
        f"the data set {name} is not prepared in {builder.data_dir_root}",
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


def _read(builder: Any, name: str, split: str, classes: int, size: int) -> ArraySplit:
    try:
        count = builder.info.splits[split].num_examples
        records = _records(builder, name, split) if count else iter(())
        pairs = [(_rgb(record["image"], name), int(record["label"])) for record in records]
    except UserError:
        raise
    except Exception as error:  # tfds, array_record and pillow share no base class for what damaged files raise
        raise UserError(
            f"split {split!r} of tfds:{name} in {builder.data_dir} cannot be read: {_first_line(error)}"
        ) from error
    if not count:
        raise UserError(f"split {split!r} of tfds:{name} is empty")
    if len(pairs) != count:
        raise UserError(
            f"split {split!r} of tfds:{name} in {builder.data_dir} has {len(pairs)} images, not the {count} it should "
            "have; its files are damaged"
        )
    if len({image.shape for image, _ in pairs}) > 1:
        pairs = [(array_to_square(image, size), label) for image, label in pairs]
    labels = np.array([label for _, label in pairs], np.int32)
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"split {split!r} of tfds:{name} in {builder.data_dir} has labels outside its {classes} classes; its files "
            "are damaged"
        )
    return ArraySplit(np.stack([image for image, _ in pairs]), labels)


def _records(builder: Any, name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:  # a copy prepared as TFRecord has no random access
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError(
                f"tfds:{name} in {builder.data_dir} was prepared as TFRecord, which only TensorFlow reads: "
                f"pip install -e '.[prepare]'"
            ) from None
        import tensorflow_datasets as tfds

        yield from tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        return
    for first in range(0, len(source), BLOCK):
        yield from source.__getitems__(list(range(first, min(first + BLOCK, len(source)))))


def _rgb(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise UserError(
            f"images of tfds:{name} are {image.dtype} {image.shape}; only 8-bit gray or RGB images can be used"
        )
    return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def split_names(name: str, *, directory: str | None, download: bool) -> list[str]:
    """The splits of the set, which is prepared where that is needed. Arguments and errors are those of `load_tfds`."""
    builder = _builder(name, directory)
    if not builder.info.splits:
        _prepare(builder, name, download)
    return list(builder.info.splits)


def positions(name: str, *, directory: str | None, split: str) -> dict[str, list[range]]:
    """File -> the records of it that `split` has; nothing where there is no such split. Raises as `load_tfds`."""
    found: dict[str, list[range]] = {}
    try:
        for part in _builder(name, directory).info.splits[split].file_instructions:
            count = part.examples_in_shard - part.skip if part.take < 0 else part.take
            found.setdefault(part.filename, []).append(range(part.skip, part.skip + count))
    except (KeyError, ValueError, AssertionError):
        return {}  # `load_tfds` says what is wrong with it
    return found
