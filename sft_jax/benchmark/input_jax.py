"""The sft-jax worker of the comparison of input pipelines.

python -m sft_jax.benchmark.input_jax FOLDER SIZE BATCH
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from sft_jax.runtime.allocator import keep_freed_memory

keep_freed_memory()

import jax  # noqa: E402  # the allocator first
import numpy as np  # noqa: E402

from sft_jax import data  # noqa: E402
from sft_jax.benchmark import worker  # noqa: E402
from sft_jax.benchmark.input import KEPT  # noqa: E402
from sft_jax.config import complete  # noqa: E402
from sft_jax.data.images.decoding import read_images  # noqa: E402
from sft_jax.data.images.reading import Reading  # noqa: E402
from sft_jax.data.loader import Chunk, Loader, StepsPerCall  # noqa: E402
from sft_jax.data.sources.folder import list_folder  # noqa: E402
from sft_jax.data.sources.labelling import LABELLINGS  # noqa: E402
from sft_jax.errors import run_command  # noqa: E402
from sft_jax.runtime.cache import cache_folder  # noqa: E402
from sft_jax.runtime.devices import Devices  # noqa: E402
from sft_jax.training.steps import rows_of  # noqa: E402


def main() -> None:
    """Serves the tasks first and later."""
    folder, size, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = complete(
        {
            "data.source": f"folder:{folder}",
            "data.size": size,
            "data.keep_size": round(KEPT * size),
            "data.crop_scale": (0.08, 1.0),
        }
    ).data
    side = _Side(folder, config, batch)
    worker.serve({"jax": jax.__version__}, {"first": side.first, "later": side.later})


class _Side:
    def __init__(self, folder: Path, config, batch: int):
        self.folder, self.config, self.batch = folder, config, batch
        self.devices, self.epochs = Devices(jax.local_devices()[:1]), 0
        augment = data.make_augment(config, config.size)

        def program(chunk: Chunk, key: jax.Array) -> jax.Array:
            return augment(rows_of(chunk, chunk.start)["image"], key, 0, batch)

        self.program = program
        self.loader: Loader | None = None
        self.compiled: Callable | None = None

    def read(self) -> Loader:
        """Lists, checks and decodes the folder, as a run does."""
        listing = list_folder(self.folder, [])
        targets = LABELLINGS["class"].targets([file.label for file in listing.files], listing.class_names)
        paths = [listing.root / file.name for file in listing.files]
        reading = Reading.of_config(self.config)
        images = read_images(listing.root, {"train": (paths, targets)}, self.config.size, reading)
        return Loader(images.splits["train"], self.devices)

    def epoch(self) -> None:
        assert self.loader is not None
        assert self.compiled is not None
        order = np.random.default_rng(self.epochs).permutation(len(self.loader)).astype(np.int32)
        order = order[: len(order) // self.batch * self.batch].reshape(-1, self.batch)
        self.epochs += 1
        steps_per_call = StepsPerCall()
        results = None
        for call in self.loader.calls(order, steps_per_call=steps_per_call):
            for step in range(call.steps):
                start = self.devices.replicate(call.chunk.start + step)
                key = self.devices.replicate(jax.random.key(self.epochs))
                jax.block_until_ready(results)  # one batch is computed while the next is called for
                results = self.compiled(call.chunk._replace(start=start), key)
        jax.block_until_ready(results)

    def first(self, repeats: int) -> list[float]:
        def call() -> None:
            self.loader = self.read()
            if self.compiled is None:
                self.compiled = self.loader.compile(self.program, chunk_at=0, arguments=2, gather=False)
            self.epoch()

        times = []
        for _ in range(repeats):
            shutil.rmtree(cache_folder("images") or "", ignore_errors=True)
            times += worker.milliseconds(call, 1)
        return times

    def later(self, repeats: int) -> list[float]:
        return worker.milliseconds(self.epoch, repeats)


if __name__ == "__main__":
    sys.exit(run_command(main))
