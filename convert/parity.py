"""Compares the activations of torch's network and ours on the same inputs: images or texts."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from rich.table import Table

from convert.families import REFERENCES, reference_of
from convert.reference import Reference
from sft_jax.errors import UserError
from sft_jax.models import Network

# Maximum difference of a logit, relative to the largest one. Correct float32 programs differ by about 1e-6.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result for one batch in evaluation mode.

    Attributes:
      size: side length of the images in pixels, or length of the texts in tokens.
      unit: of `size`, for messages.
      images: number of images or texts.
      stages: largest absolute difference after the stem and after each block, by name.
      logits: largest absolute difference of the logits.
      largest_logit: largest absolute value of torch's logits.
      top1_agreement: fraction of them with the same top-1 class.
    """

    size: int
    unit: str
    images: int
    stages: dict[str, float]
    logits: float
    largest_logit: float
    top1_agreement: float

    @property
    def relative(self) -> float:
        """The largest difference of the logits, relative to the largest logit."""
        return self.logits / self.largest_logit if self.largest_logit else self.logits

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes by name, and `relative` as logits_relative."""
        return dataclasses.asdict(self) | {"logits_relative": self.relative}


def sizes(network: Network, arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the sizes of the inputs on which two networks are to be compared, in `Reference.unit`."""
    architecture = network.architecture
    own = architecture.size_of(arrays)
    return reference_of(architecture.name).sizes(architecture.name) if own is None else (own,)


def compare(
    module: torch.nn.Module,
    network: Network,
    arrays: Mapping[str, np.ndarray],
    size: int,
    *,
    images: int = 4,
    seed: int = 0,
) -> Comparison:
    """Runs torch's `module` and our `network` with `arrays` on the same `images` random inputs of `size`."""
    reference = REFERENCES[network.architecture.family]
    inputs = reference.inputs(module, size, images, seed)
    theirs, their_logits = torch_activations(module, inputs, reference)
    ours, our_logits = flax_activations(network, arrays, inputs)
    assert theirs.keys() == ours.keys(), "the networks have different blocks"
    return Comparison(
        size=size,
        unit=reference.unit,
        images=images,
        stages={name: _largest(ours[name] - theirs[name]) for name in theirs},
        logits=_largest(our_logits - their_logits),
        largest_logit=_largest(their_logits),
        top1_agreement=float((our_logits.argmax(-1) == their_logits.argmax(-1)).mean()),
    )


def torch_activations(
    module: torch.nn.Module, inputs: Sequence[np.ndarray], reference: Reference
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns activations [batch, ..., channels] after each of `Reference.stages`, and the logits.

    `inputs` are those of our network.
    """
    stages: dict[str, np.ndarray] = {}

    def keep(name: str):
        def hook(_module, _inputs, output: Any) -> None:
            # transformers' layers return tuples in some versions.
            output = output[0] if isinstance(output, tuple) else output
            stages[name] = reference.arranged(output).numpy()

        return hook

    watched = reference.stages(module)
    hooks = [block.register_forward_hook(keep(name)) for name, block in watched.items()]
    try:
        with torch.no_grad():
            logits = reference.logits(module.eval(), reference.given(module, *inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return stages, np.moveaxis(logits.numpy(), 1, -1)  # of pixels, outputs come before them in torch


def flax_activations(
    network: Network, arrays: Mapping[str, np.ndarray], inputs: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Like `torch_activations`, for our network with `arrays`."""

    @jax.jit
    def run(params, batch_stats, *inputs):
        model: Any = network.bind(params, batch_stats)
        return dict(model.stages(*inputs)), model(*inputs)

    params, batch_stats = ({key: arrays[key] for key in part} for part in (network.params, network.batch_stats))
    # By default accelerators multiply float32 at reduced precision.
    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(params, batch_stats, *inputs))


def check(comparisons: Iterable[Comparison]) -> None:
    """Raises UserError if the logits of the two networks differ by more than `TOLERANCE`."""
    for comparison in comparisons:
        if not comparison.relative <= TOLERANCE:  # NaN must fail too
            raise UserError(
                f"the two networks differ: at {comparison.size} {comparison.unit} a logit is off by "
                f"{comparison.relative:.1e} of the largest one, more than the tolerance {TOLERANCE:.0e}; nothing was "
                f"written, see the table for the first block that differs"
            )


def table(comparisons: Iterable[Comparison]) -> Table:
    """Returns a table with one row per block and one column per size."""
    comparisons = list(comparisons)
    view = Table(title="Largest absolute difference between torch and Flax", title_justify="left")
    view.add_column("after")
    for comparison in comparisons:
        view.add_column(f"{comparison.size} {comparison.unit}", justify="right")
    for name in comparisons[0].stages:
        view.add_row(name, *(f"{comparison.stages[name]:.1e}" for comparison in comparisons))
    view.add_section()
    view.add_row("logits", *(f"{comparison.logits:.1e}" for comparison in comparisons))
    view.add_row("  relative to the largest", *(f"{comparison.relative:.1e}" for comparison in comparisons))
    view.add_row("same top-1 class", *(f"{comparison.top1_agreement:.0%}" for comparison in comparisons))
    return view


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())
