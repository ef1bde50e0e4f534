"""A trained network of ours as torch's: what every way back to torch starts from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import torchvision

from convert import keys, networks
from convert.facts import Facts, of_run, recorded
from sft_jax.data.preprocess import Preprocess
from sft_jax.models import Network
from sft_jax.models.weights import initialise, load_weights
from sft_jax.run.folder import Run, load_run_weights


@dataclasses.dataclass(frozen=True)
class Trained:
    """The same weights on both sides.

    Attributes:
      arch, stem: of the network.
      classes: how many.
      facts: its class names, and what its images go through.
      network, arrays: ours.
      state_dict, module: torch's; the latter in evaluation mode.
    """

    arch: str
    stem: str
    classes: int
    facts: Facts
    network: Network
    arrays: dict[str, np.ndarray]
    state_dict: dict[str, torch.Tensor]
    module: torchvision.models.ResNet

    @property
    def size(self) -> int:
        """Side of its images in pixels; where that was not recorded, the usual one for its stem."""
        usual = 224 if self.stem == "imagenet" else 32
        return self.facts.preprocess["size"] if self.facts.preprocess else usual

    def metadata(self) -> dict[str, str]:
        """What an export says of itself; class names and preprocessing as JSON, and only where they are known."""
        known = {"class_names": self.facts.class_names, "preprocess": self.facts.preprocess}
        texts = {name: json.dumps(fact) for name, fact in known.items() if fact is not None}
        return {"arch": self.arch, "stem": self.stem} | texts


def read(workdir: Path | None, file: Path | None) -> Trained:
    """The best checkpoint of the run `workdir`, or else the converted weights in `file`.

    Raises:
      UserError: there are none, or they do not fit their network.
    """
    if workdir is not None:
        weights, config = load_run_weights(workdir), Run(workdir).config()
        assert weights.class_names is not None, "a run knows its classes"
        preprocess = Preprocess.of_metadata(weights.metadata, Preprocess.of_config(config.data))
        stem, facts = config.model.stem, of_run(weights.class_names, preprocess)
    else:
        assert file is not None
        weights = load_weights(file)
        stem, facts = weights.stem, recorded(weights.class_names, weights.metadata)
    classes = weights.outputs or 1000
    network = networks.flax_network(weights.arch, classes, stem)
    initialise(network, weights.arrays, source=str(workdir or file))
    counters = weights.metadata.get("num_batches_tracked")
    state_dict = keys.to_torch(weights.arrays, None if counters is None else json.loads(counters))
    module = networks.torch_network(weights.arch, classes, state_dict, stem)
    return Trained(weights.arch, stem, classes, facts, network, weights.arrays, state_dict, module)
