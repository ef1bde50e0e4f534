"""Loads a trained network of ours together with its torch equivalent, for conversion to torch and ONNX."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from convert import keys
from convert.facts import Facts, of_run, recorded
from convert.families import flax_network, reference_of
from sft_jax import models
from sft_jax.data.preprocess import Preprocess
from sft_jax.models import Network
from sft_jax.models.packages import load_installed_or_file
from sft_jax.models.weights import initialise
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights


@dataclasses.dataclass(frozen=True)
class Trained:
    """The same weights in Flax and in torch.

    Attributes:
      arch, stem: architecture and stem of the network.
      classes: number of classes.
      facts: its class names, preprocessing, licence and task.
      network, arrays: our network.
      state_dict, module: torch's network; the module is in evaluation mode.
    """

    arch: str
    stem: str
    classes: int
    facts: Facts
    network: Network
    arrays: dict[str, np.ndarray]
    state_dict: dict[str, torch.Tensor]
    module: torch.nn.Module

    @property
    def longest(self) -> int | None:
        """Of a network of texts, the most tokens that it takes; None of images."""
        texts = self.network.architecture.texts
        return None if texts is None else texts.longest

    @property
    def size(self) -> int:
        """Image size in pixels; the usual one for its stem if none is recorded. Of texts, a number of tokens."""
        if self.longest is not None:
            return 16
        usual = self.network.architecture.pretrained.size if self.stem == "imagenet" else 32
        return self.facts.preprocess["size"] if self.facts.preprocess else usual

    def metadata(self) -> dict[str, str]:
        """Returns the metadata of an export; class names and preprocessing are JSON, absent if unknown."""
        known = {"class_names": self.facts.class_names, "preprocess": self.facts.preprocess}
        texts = {name: json.dumps(fact) for name, fact in known.items() if fact is not None}
        licence = {} if self.facts.licence is None else {"licence": self.facts.licence}
        return {"arch": self.arch, "stem": self.stem} | dict(self.facts.task) | licence | texts


def read(workdir: Path | None, file: Path | None, *, inputs: bool = False) -> Trained:
    """Reads the best checkpoint of the run `workdir`, or the converted weights in `file`.

    With `inputs` position embeddings are for images of `Trained.size`, otherwise those of the file.

    Raises:
      UserError: there are no weights, or they do not fit their network.
    """
    if workdir is not None:
        weights, config = load_run_weights(workdir), Run(workdir).config()
        preprocess = Preprocess.of_metadata(weights.metadata, Preprocess.of_config(config.data))
        stem, facts = config.model.stem, of_run(weights, preprocess)
    else:
        assert file is not None
        weights = load_installed_or_file(file)
        stem, facts = weights.stem, recorded(weights.class_names, weights.metadata)
    classes = weights.outputs or 1000
    architecture, arrays = models.architecture(weights.arch), weights.arrays
    if inputs and facts.preprocess is not None:
        arrays, _ = architecture.for_size(arrays, facts.preprocess["size"])
    network = flax_network(weights.arch, classes, stem, architecture.size_of(arrays))
    initialise(network, arrays, source=str(workdir or file))
    counters = weights.metadata.get("num_batches_tracked")
    own = keys.to_torch(arrays, network.architecture, None if counters is None else json.loads(counters))
    reference = reference_of(weights.arch)
    state_dict = reference.whole(own, weights.arch)
    module = reference.module(weights.arch, classes, state_dict, stem)
    return Trained(weights.arch, stem, classes, facts, network, arrays, state_dict, module)
