"""A trained classifier, opened from whatever holds one: `sft_jax.load("runs/cifar10")`."""

import concurrent.futures
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from sft_jax import models
from sft_jax.config import default_config
from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.images.formats import UNREADABLE, FileWarnings, reason
from sft_jax.data.images.given import Given, one_by_one
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.inference.stablehlo import SUFFIXES, load_exported
from sft_jax.models.weights import Weights, initialise, load_weights
from sft_jax.run.folder import Run, load_run_weights
from sft_jax.tasks import task_class
from sft_jax.tasks.classification import Classification

# Images of one call of the network: enough to keep the cores busy.
BATCH = 32


class Classifier:
    """A network with what its images go through and what its outputs mean.

    Attributes:
      program: normalised float32 [n, size, size, 3] -> logits [n, classes]; compiled, pure.
      preprocess: what images go through; `preprocess.size`, `.mean` and `.std` among it.
      class_names: of the outputs.
    """

    def __init__(
        self,
        program: Callable[[jax.Array], jax.Array],
        preprocess: Preprocess,
        class_names: Sequence[str],
        model: Callable[[], nnx.Module] | None = None,
    ):
        self.program, self.preprocess, self.class_names = program, preprocess, tuple(class_names)
        self._inputs = jax.jit(preprocess.on_device)
        self._make_model = model
        self._compiled: set[int] = set()

    @functools.cached_property
    def model(self) -> Any:
        """The NNX module: `model(x, train=False)` with x normalised, float32 [n, height, width, 3].

        Raises:
          AttributeError: an export holds a compiled program and no module.
        """
        if self._make_model is None:
            raise AttributeError("an export holds no NNX module, only its program: load the run it was made from")
        return self._make_model()

    def logits(self, images: Any) -> np.ndarray:
        """The logits of images, float32 [n, classes].

        Args:
          images: files by their paths, images of Pillow's, or arrays, one or a list of them; an array may be
            [n, height, width, 3] too. RGB or gray, uint8 or floating point in 0..1, of any size. They are brought to
            `preprocess.size` and normalised here, exactly as in the run's evaluation.

        Raises:
          TypeError, ValueError: another dtype, another shape, or values outside 0..1.
          UserError: a file cannot be read.
        """
        given = one_by_one(images)
        found = []
        with FileWarnings() as warned, concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
            for first in range(0, len(given), BATCH):
                found.append(self.square_logits(list(pool.map(self._squared, given[first : first + BATCH]))))
        for line in warned.lines:
            warnings.warn(line, stacklevel=2)
        return np.concatenate(found) if found else np.zeros((0, len(self.class_names)), np.float32)

    def square_logits(self, squares: Sequence[np.ndarray]) -> np.ndarray:
        """`logits` of at most `BATCH` images as `preprocess.read` gives them, which may differ in size."""
        if len({(square.shape, square.dtype) for square in squares}) == 1:
            return self._run(self._inputs(np.stack(squares)))
        return self._run(jnp.concatenate([self._inputs(square[None]) for square in squares]))

    def _squared(self, image: Given) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return self.preprocess.of_array(image)
        if isinstance(image, Image.Image):
            return self.preprocess.of_image(image)
        try:
            return self.preprocess.read(image)
        except UNREADABLE as error:
            raise UserError(f"{image} cannot be read: {reason(error, image)}") from error

    def predict(self, images: Any, top: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The most probable classes of images, the first one first.

        Args:
          images: see `logits`.
          top: classes an image.

        Returns:
          their names [n, top] and probabilities, float32 [n, top]; `top` is the number of classes at most.

        Raises:
          TypeError, ValueError, UserError: as `logits`; ValueError where `top` is below 1, UserError where there is
            one class only.
        """
        self.check_classes()
        return self.ranked(self.logits(images), top)

    def ranked(self, logits: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """`predict` of logits [n, classes]. Equal ones stay in the order of the classes."""
        if top < 1:
            raise ValueError(f"top={top} must be 1 or more")
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        probabilities = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), order, -1)
        return np.array(self.class_names)[order], probabilities

    def check_classes(self) -> None:
        """Raises UserError where the network has one output: its class would be certain whatever the image."""
        if len(self.class_names) == 1:
            raise UserError(
                "the network has one output, which is a score and no choice of classes; sigmoid of `logits` is its "
                "probability, and a head with two outputs, 0 and that score, predicts the same with names"
            )

    def _run(self, inputs: jax.Array) -> np.ndarray:
        """The network on at most `BATCH` inputs, filled up to a number of images that it was compiled for."""
        count = len(inputs)
        # The next power of two: few compilations in all, and no other one for the last batch of many.
        size = min((known for known in self._compiled if known >= count), default=1 << (count - 1).bit_length())
        self._compiled.add(size)
        filled = jnp.pad(inputs, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        return np.asarray(self.program(filled)[:count], np.float32)


def load(path: str | Path, *, checkpoint: str = "best") -> Classifier:
    """Opens a trained classifier.

    Args:
      path: the folder of a run, a converted file (.safetensors), or an export (.stablehlo, .jax).
      checkpoint: of a run, "best" or "latest" (the weights after the last step, not their moving average).

    Raises:
      UserError: nothing there, or nothing that can be used.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no run, converted file or export {path}")
    if path.is_dir():
        config = Run(path).config()
        if task_class(config) is not Classification:
            raise UserError(f"{path} learnt task={config.task}; only classification can predict and be exported so far")
        check_evaluable(config, checkpoint)
        weights, otherwise = load_run_weights(path, checkpoint), Preprocess.of_config(config.data)
        return _of_weights(weights, config.model, config.precision, otherwise, str(path))
    if path.suffix in SUFFIXES:
        return load_export(path)
    weights = load_weights(path)
    if "stem" in weights.metadata and "preprocess" not in weights.metadata:  # the first files had neither
        raise UserError(
            f"{path} does not say how its images are to be prepared; convert it anew with --size, --mean and --std"
        )
    config = default_config()
    config.model.name, config.model.stem = weights.arch, weights.stem
    usual = Preprocess.of_pretrained(models.architecture(weights.arch).pretrained)
    return _of_weights(weights, config.model, config.precision, usual, str(path))


def check_evaluable(config: ConfigDict, checkpoint: str) -> None:
    """Raises UserError where the checkpoint "latest" of such a run holds other weights than those to evaluate."""
    if checkpoint == "latest" and config.optimizer.name.startswith("schedule_free"):
        raise UserError(
            f"the latest checkpoint of {config.optimizer.name} holds the weights that it trains, not their average, "
            f"which is what it evaluates; use --checkpoint best"
        )


def load_export(path: Path) -> Classifier:
    """Opens what `python -m sft_jax.export` wrote. Raises UserError."""
    program, metadata = load_exported(path)
    return Classifier(jax.jit(program), Preprocess.from_json(metadata["preprocess"]), metadata["class_names"])


def _of_weights(weights: Weights, config: ConfigDict, precision: str, otherwise: Preprocess, source: str) -> Classifier:
    """The classifier of `weights`, with `otherwise` where they do not say what images go through."""
    classes = len(weights.class_names or ()) or weights.outputs or 1000
    network = models.Network.abstract(models.builder(config, classes, precision=precision))
    params, batch_stats = jax.device_put(initialise(network, weights.arrays, source=source))

    @jax.jit
    def run(params, batch_stats, inputs):
        return network.apply(params, batch_stats, inputs, train=False)[0]

    return Classifier(
        lambda inputs: run(params, batch_stats, inputs),
        Preprocess.of_metadata(weights.metadata, otherwise),
        # Of a file of somebody's own the classes have no names.
        weights.class_names or [str(label) for label in range(classes)],
        lambda: network.bind(params, batch_stats),
    )
