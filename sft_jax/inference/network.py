"""A trained network in use: what those of images and those of texts have in common."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sft_jax.errors import UserError
from sft_jax.tasks import Task, task_named

# Examples per call of the network: enough to use all cores.
BATCH = 32


class TrainedNetwork:
    """A network with its task and the names of its outputs.

    Attributes:
      program: the network's inputs -> outputs [n, outputs], logits of classes; compiled and pure.
      class_names: names of the outputs: of classes, of labels, or of the number.
      task_name, learnt: the task, and what it needs besides the weights, see `Task.of_network`.
      task: the task.
      decoder: makes its predictions.
      precision: a key of `PRECISIONS`: dtype of activations, and how products are computed.
      licence: of the weights that training started from; None if unknown.
      backbone: the network's inputs -> features, the head's inputs, float32 [n, channels]; None for an export.
    """

    def __init__(
        self,
        program: Callable[..., jax.Array],
        class_names: Sequence[str],
        *,
        task: str,
        learnt: Mapping[str, Any] | None = None,
        precision: str = "float32",
        licence: str | None = None,
        model: Callable[[], nnx.Module] | None = None,
        backbone: Callable[..., jax.Array] | None = None,
    ):
        self.program, self.class_names = program, tuple(class_names)
        self.task_name, self.learnt = task, dict(learnt or {})
        self.task: Task = task_named(task).of_network(self.class_names, self.learnt)
        self.decoder = self.task.decoder()
        self.precision, self.licence, self.backbone = precision, licence, backbone
        self._make_model = model
        self._compiled: set[int] = set()

    @functools.cached_property
    def model(self) -> Any:
        """The NNX module: `model(*inputs, train=False)` with the inputs of `program`.

        Raises:
          AttributeError: the network is an export, which only contains a compiled program.
        """
        if self._make_model is None:
            raise AttributeError("an export contains no NNX module, only a program; load the run it was made from")
        return self._make_model()

    def logits(self, examples: Any) -> np.ndarray:
        """Computes the outputs for examples, logits or numbers, float32 [n, outputs]."""
        raise NotImplementedError

    def predict(self, examples: Any, top: int | None = None) -> Any:
        """Predicts what the network has learnt to say of examples.

        Args:
          examples: see `logits`.
          top: of classes, how many per example, limited to their number; None for 5. Other tasks have none.

        Returns:
          of classes: their names [n, top] and probabilities, float32 [n, top], the most probable first; of several
          labels per image: lists of those over their thresholds, the most probable first, and the probabilities of all
          labels, float32 [n, labels]; of a number: float32 [n].

        Raises:
          ValueError: `top` is less than 1.
          UserError: the network has a single output, which cannot be ranked.
        """
        self.decoder.check(None)
        return self.decoder.predict(self.logits(examples), top)

    def _to_explain(self) -> Any:
        if self._make_model is None:
            raise UserError("an export cannot be explained; name the run or the converted file it was made of")
        return self.model

    def _of_backbone(self) -> Callable[..., jax.Array]:
        if self.backbone is None:
            raise UserError("an export gives logits but no features; name the run or the converted file it was made of")
        return self.backbone

    def _run(self, program: Callable[..., jax.Array], inputs: Sequence[np.ndarray | jax.Array]) -> np.ndarray:
        """Runs `program` on inputs of at most `BATCH` examples, which are padded to a compiled batch size."""
        count = len(inputs[0])
        # Otherwise the next power of two, which limits the number of compilations.
        size = min((known for known in self._compiled if known >= count), default=1 << (count - 1).bit_length())
        self._compiled.add(size)
        filled = [jax.numpy.pad(each, ((0, size - count), *[(0, 0)] * (each.ndim - 1))) for each in inputs]
        return np.asarray(program(*filled)[:count], np.float32)
