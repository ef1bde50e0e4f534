"""Loads a trained network from a run, a converted file or an export: `sft_jax.load("runs/cifar10")`."""

import concurrent.futures
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from sft_jax import models
from sft_jax.config import default_config
from sft_jax.data.crops import CENTRE, Place
from sft_jax.data.dataset import DECODING_THREADS
from sft_jax.data.images.formats import FileWarnings, readable
from sft_jax.data.images.given import Given, one_by_one
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError
from sft_jax.inference import explain, masks
from sft_jax.inference.network import BATCH, TrainedNetwork
from sft_jax.inference.stablehlo import SUFFIXES, load_exported
from sft_jax.inference.texts import TextClassifier, text_facts
from sft_jax.inference.windows import WHOLE, View
from sft_jax.models.packages import PREFIX, load_installed_or_file
from sft_jax.models.weights import Weights, headless, initialise
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights
from sft_jax.tasks import task_named


class Classifier(TrainedNetwork):
    """A network of images with its preprocessing, see `TrainedNetwork`.

    Its inputs are normalised, float32 [n, size, size, 3].

    Attributes:
      preprocess: preprocessing of images, with `size`, `mean`, `std` and more.
    """

    def __init__(
        self,
        program: Callable[[jax.Array], jax.Array],
        preprocess: Preprocess,
        class_names: Sequence[str],
        *,
        task: str = "classification",
        **others: Any,
    ):
        super().__init__(program, class_names, task=task, **others)
        self.preprocess = preprocess
        self._inputs = jax.jit(preprocess.on_device, static_argnums=1)

    def logits(self, images: Any) -> np.ndarray:
        """Computes the outputs for images, logits or numbers, float32 [n, outputs].

        Args:
          images: paths, Pillow images or arrays, one or a list of them; an array may also be [n, height, width, 3].
            Images are RGB or gray, uint8 or floating point in 0..1, of any size. They are resized to `preprocess.size`
            and normalised exactly as in the run's evaluation.

        Raises:
          TypeError, ValueError: an invalid dtype or shape, or values outside 0..1.
          UserError: a file cannot be read.
        """
        given = one_by_one(images)
        logits = []
        with FileWarnings() as warned, concurrent.futures.ThreadPoolExecutor(DECODING_THREADS) as pool:
            for first in range(0, len(given), BATCH):
                logits.append(self.square_logits(list(pool.map(self._squared, given[first : first + BATCH]))))
        for line in warned.lines:
            warnings.warn(line, stacklevel=2)
        return np.concatenate(logits) if logits else np.zeros((0, len(self.class_names)), np.float32)

    def square_logits(
        self, squares: Sequence[np.ndarray], place: Place = CENTRE, *, mirrored: bool = False
    ) -> np.ndarray:
        """Computes the logits of at most `BATCH` images returned by `preprocess.read`, which may differ in size.

        See `crops.cropped` for `place`; `mirrored` flips the network's inputs horizontally.
        """
        inputs = self.inputs(squares, place)
        return self._run(self.program, [inputs[:, :, ::-1] if mirrored else inputs])

    def square_features(self, squares: Sequence[np.ndarray]) -> np.ndarray:
        """Computes the features, float32 [n, channels], of images as for `square_logits`.

        Raises:
          UserError: the classifier is an export, whose program gives logits only.
        """
        if self.task.dense:
            raise UserError("the network has outputs of pixels, and so no features of the whole image")
        return self._run(self._of_backbone(), [self.inputs(squares)])

    def explain(self, squares: Sequence[np.ndarray], outputs: np.ndarray) -> np.ndarray:
        """Computes the heat maps of `explain.heat_maps` of images as for `square_logits`: float32 [n, rows, columns].

        Raises:
          UserError: the classifier is an export, or its network has no method.
        """
        model = self._to_explain()
        explain.method(model)
        return np.asarray(explain.heat_maps(model, self.inputs(squares), jnp.asarray(outputs, jnp.int32)))

    def inputs(self, squares: Sequence[np.ndarray], place: Place = CENTRE) -> jax.Array:
        """Preprocesses images as for `square_logits`: normalised float32 [n, size, size, 3]."""
        if len({(square.shape, square.dtype) for square in squares}) == 1:
            return self._inputs(np.stack(squares), place)
        return jnp.concatenate([self._inputs(square[None], place) for square in squares])

    def _squared(self, image: Given) -> np.ndarray:
        if isinstance(image, np.ndarray):
            return self.preprocess.of_array(image)
        if isinstance(image, Image.Image):
            return self.preprocess.of_image(image)
        with readable(image):
            return self.preprocess.read(image)

    def predict(self, images: Any, top: int | None = None, *, windows: int | None = None, flips: bool = False) -> Any:
        """See `TrainedNetwork`; of pixels it returns a list of masks, see `masks.predict`.

        `windows` and `flips` are for networks of pixels, see `View`; for others they raise UserError.
        """
        self.decoder.check(None)
        view = View(windows, flips)
        if self.task.dense and top is None:
            return masks.predict(self, images, view)
        if view != WHOLE:
            raise UserError("windows and flips are for networks with a class per pixel, which this one is not")
        return super().predict(images, top)


def load(path: str | Path, *, checkpoint: str = "best", features_only: bool = False) -> Classifier | TextClassifier:
    """Loads a trained network: a `Classifier` of images, or a `TextClassifier`.

    Args:
      path: the folder of a run, a converted file (.safetensors), an export (.stablehlo, .jax), or "package:NAME" for
        the weights of an installed package.
      checkpoint: for a run, "best" or "latest" (the weights after the last step, not their moving average).
      features_only: whether weights without a head will do, of which only the features can be computed.

    Raises:
      UserError: `path` does not exist or cannot be used.
    """
    path = Path(path)
    if not path.exists() and not str(path).startswith(PREFIX):
        raise UserError(f"{path} does not exist; give a run, a converted file or an export")
    if path.is_dir():
        config = Run(path).config()
        check_evaluable(config, checkpoint)
        weights, otherwise = load_run_weights(path, checkpoint), Preprocess.of_config(config.data)
        return _of_weights(weights, config.model, config.precision, otherwise, str(path))
    if path.suffix in SUFFIXES:
        return load_export(path)
    weights = _weights(path)
    config = default_config()
    config.model.name, config.model.stem = weights.arch, weights.stem
    usual = Preprocess.of_pretrained(models.architecture(weights.arch).pretrained)
    return _of_weights(weights, config.model, config.precision, usual, str(path), features_only)


def check_evaluable(config: ConfigDict, checkpoint: str) -> None:
    """Raises UserError if the run's checkpoint "latest" does not contain the weights to evaluate."""
    if checkpoint == "latest" and config.optimizer.name.startswith("schedule_free"):
        raise UserError(
            f"the latest checkpoint of {config.optimizer.name} does not contain the averaged weights, which are needed "
            f"for evaluation; use --checkpoint best"
        )


def load_export(path: Path) -> Classifier | TextClassifier:
    """Loads a file written by `python -m sft_jax.export`. Raises UserError if it cannot be read."""
    program, metadata = load_exported(path)
    facts: dict[str, Any] = {
        # Early exports do not say it.
        "precision": metadata.get("precision", "float32"),
        "licence": metadata.get("licence"),
        "task": metadata.get("task", "classification"),
        "learnt": metadata.get("learnt"),
    }
    if "padding" in metadata:
        return TextClassifier(jax.jit(program), metadata["class_names"], padding=metadata["padding"], **facts)
    return Classifier(jax.jit(program), Preprocess.from_json(metadata["preprocess"]), metadata["class_names"], **facts)


def _weights(path: Path) -> Weights:
    """Loads a converted file, or the weights of a package. Raises UserError."""
    weights = load_installed_or_file(path)
    of_images = models.architecture(weights.arch).texts is None
    if of_images and "stem" in weights.metadata and "preprocess" not in weights.metadata:  # early files have neither
        raise UserError(
            f"{path} does not specify the preprocessing of images; convert it again with --size, --mean and --std"
        )
    return weights


def _of_weights(
    weights: Weights,
    config: ConfigDict,
    precision: str,
    otherwise: Preprocess,
    source: str,
    features_only: bool = False,
) -> Classifier | TextClassifier:
    """Makes the network of `weights`; `otherwise` is the preprocessing of images if they do not specify it.

    See `load` for `features_only`.
    """
    # Users' own files may lack class names.
    names = weights.class_names or [str(label) for label in range(weights.outputs or 1000)]
    texts = models.architecture(weights.arch).texts
    learnt = weights.learnt if texts is None else text_facts(weights, texts, source)
    task = task_named(weights.task).of_network(names, learnt)
    preprocess = Preprocess.of_metadata(weights.metadata, otherwise)
    network = models.Network.abstract(models.builder(config, task.outputs, size=preprocess.size, precision=precision))
    network.architecture.check_inputs(task.inputs, weights.task)
    arrays, resampled = network.architecture.for_size(weights.arrays, preprocess.size)
    if resampled:
        warnings.warn(f"weights of {source}{resampled}", stacklevel=3)
    head = None
    if features_only and not any(map(network.is_head, arrays)):
        head = {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in network.params.items() if network.is_head(key)}
    params, batch_stats = jax.device_put(initialise(network, arrays, source=source, head=head))

    @jax.jit
    def run(params, batch_stats, *inputs):
        return network.apply(params, batch_stats, *inputs, train=False)[0]

    @jax.jit
    def features(params, batch_stats, *inputs):
        return network.features(params, batch_stats, *inputs)

    facts: dict[str, Any] = {
        "precision": precision,
        "licence": weights.metadata.get("licence"),
        "task": weights.task,
        "learnt": learnt,
        "model": lambda: network.bind(params, batch_stats),
        "backbone": lambda *inputs: features(params, batch_stats, *inputs),
    }

    def program(*inputs: jax.Array) -> jax.Array:
        if head is not None:
            raise headless(source)
        return run(params, batch_stats, *inputs)

    if texts is not None:
        return TextClassifier(program, names, padding=texts.padding, **facts)
    return Classifier(program, preprocess, names, **facts)
