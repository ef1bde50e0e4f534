"""Pictures that a user names: which files they are, and their contents one after the other."""

import collections
import concurrent.futures
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.images.files import find_images, left_out
from sft_jax.data.images.formats import UNREADABLE, reason

# Pictures decoded before they are asked for.
AHEAD = 64

Tell = Callable[[str], None]


def files(names: Iterable[str], tell: Tell) -> Iterator[Path]:
    """The files that `names` stand for: each itself, a folder for the pictures in and below it, "-" for stdin's lines.

    `tell` is called with a line about each name that stands for none.
    """
    for name in names:
        if name == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            yield from files((line for line in lines if line not in ("", "-")), tell)
        elif re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
            tell(f"{name} is a URL; download it and name the file")
        elif Path(name).is_dir():
            found = find_images(Path(name))
            if found.others:
                tell(f"{name}: {left_out(found.others)}")
            elif not found.images:
                tell(f"{name} has no image in it")
            yield from found.images
        else:
            yield Path(name)


def decoded(paths: Iterable[Path], read: Callable[[Path], np.ndarray], tell: Tell) -> Iterator[tuple[Path, np.ndarray]]:
    """Each path with what `read` returns for it, in order; read in threads, at most `AHEAD` of them in advance.

    `tell` is called with a line about each file that cannot be read, and it is left out.
    """
    with concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
        pending: collections.deque[tuple[Path, concurrent.futures.Future[np.ndarray]]] = collections.deque()
        todo = iter(paths)
        while True:
            ahead = itertools.islice(todo, AHEAD - len(pending))
            pending.extend((path, pool.submit(read, path)) for path in ahead)
            if not pending:
                return
            path, reading = pending.popleft()
            try:
                picture = reading.result()
            except UNREADABLE as error:
                tell(f"{path} cannot be read: {reason(error, path)}")
                continue
            yield path, picture
