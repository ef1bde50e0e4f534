"""Expands the names that a user gives to image files, and decodes these in order."""

import collections
import concurrent.futures
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.images.files import find_images, left_out
from sft_jax.data.images.formats import UNREADABLE, reason

# Number of images decoded ahead.
AHEAD = 64

Tell = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


def files(names: Iterable[str], tell: Tell) -> Iterator[Path]:
    """Yields the files that `names` stand for: a file, all images in and below a folder, or "-" for lines of stdin.

    `tell` is called with a line about each name that yields no image, and about other files in folders.
    """
    for name in names:
        if name == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from files((line for line in lines if line not in ("", "-")), tell)
        elif re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
            tell(f"{name} is a URL; download it and pass the file")
        elif Path(name).is_dir():
            images, others = find_images(Path(name))
            if others:
                tell(f"{name}: {left_out(others)}")
            elif not images:
                tell(f"{name} contains no images")
            yield from images
        else:
            yield Path(name)


def decoded(paths: Iterable[Path], read: Callable[[Path], R], tell: Tell) -> Iterator[tuple[Path, R]]:
    """Yields each path with the result of `read`, in order; reads in threads, up to `AHEAD` images ahead.

    Unreadable files are skipped, and `tell` is called with a line about each.
    """
    for path, reading in ahead(paths, read):
        try:
            image = reading.result()
        except UNREADABLE as error:
            tell(f"{path} cannot be read: {reason(error, path)}")
            continue
        yield path, image


def ahead(items: Iterable[T], action: Callable[[T], R]) -> Iterator[tuple[T, concurrent.futures.Future[R]]]:
    """Yields each item with the future result of `action`, in order; threads work up to `AHEAD` items ahead."""
    with concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
        pending: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque()
        todo = iter(items)
        while True:
            following = itertools.islice(todo, AHEAD - len(pending))
            pending.extend((item, pool.submit(action, item)) for item in following)
            if not pending:
                return
            yield pending.popleft()
