"""Heat maps in a report: the parts of an image that an output of the network depends on, over what the network sees."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sft_jax import models
from sft_jax.data.crops import cropped
from sft_jax.data.dataset import Split
from sft_jax.errors import UserError
from sft_jax.inference import explain
from sft_jax.report.pictures import data_uri, images_of
from sft_jax.tasks import task_class
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.text_inputs import TextInputs
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import Variables

# Tasks whose pages show heat maps: of their outputs, each says that something is in the image.
TASKS = {"classification": Classification, "multilabel": Multilabel}
# Images per call; the last one is padded, so that there is one compilation.
BATCH = 16


def check_explained(config: ConfigDict) -> None:
    """Raises UserError if `report.explain` is set and there are no heat maps of the task or the network."""
    if not config.report.explain or issubclass(task_class(config), TextInputs):
        return
    if task_class(config) not in TASKS.values():
        raise UserError(
            f"config.report.explain=True cannot be used with task={config.task}: a heat map shows what speaks for a "
            f"class or a label, so that only {' and '.join(TASKS)} have them"
        )
    network = models.Network.abstract(models.builder(config.model, 2, size=config.data.size))
    try:
        explain.method(network.bind(network.params, network.batch_stats))
    except UserError as error:
        raise UserError(
            f"config.report.explain=True cannot be used with model.name={config.model.name}: {error}"
        ) from None


class Explainer:
    """Draws heat maps for `weights` of an experiment, on this process's devices alone.

    Attributes:
      method: "Grad-CAM" or "attention rollout".

    Raises:
      UserError: the network has no method.
    """

    def __init__(self, experiment: Experiment, weights: Variables):
        self._model = experiment.network.bind(*jax.device_get(tuple(weights)))
        self._data, self._preprocess = experiment.config.data, experiment.preprocess
        self.method = explain.method(self._model)

    def uris(self, split: Split, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        """Draws images of `split`, as the network sees them, under their heat maps.

        Args:
          split: the images.
          places: (row, output to explain) pairs.

        Returns:
          a data URI by place, see `data_uri`.
        """
        images, wanted = images_of(split, [row for row, _ in places]), list(dict.fromkeys(places))
        uris = {}
        for first in range(0, len(wanted), BATCH):
            block = wanted[first : first + BATCH]
            filled = [*block, *[block[-1]] * (BATCH - len(block))]
            whole = np.stack([images[row] for row, _ in filled])
            inputs = self._preprocess({"image": jnp.asarray(whole)})["image"]
            heat = explain.heat_maps(self._model, inputs, jnp.array([output for _, output in filled], jnp.int32))
            seen = cropped(whole, self._data.size, self._data.crop_pct)
            for place, image, own in zip(block, seen, np.asarray(heat), strict=False):
                uris[place] = data_uri(np.asarray(explain.overlay(image, own)))
        return uris
