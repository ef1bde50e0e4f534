"""Both networks on the same images: how far torch's activations and ours are apart."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import torchvision
from rich.table import Table

from sft_jax.errors import UserError
from sft_jax.models import Network

SIZES = (32, 33, 224)
# Of a logit, relative to the largest one. Two correct float32 programs differ by about 1e-6.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Of one batch of images in evaluation mode.

    Attributes:
      size: side of the images in pixels.
      images: how many.
      stages: largest absolute difference after the stem and after every block, by name.
      logits: largest absolute difference of a logit.
      largest_logit: largest absolute value of one of torch's.
      top1_agreement: share of the images with the same highest logit.
    """

    size: int
    images: int
    stages: dict[str, float]
    logits: float
    largest_logit: float
    top1_agreement: float

    @property
    def relative(self) -> float:
        """The difference of the logits relative to the largest one."""
        return self.logits / self.largest_logit if self.largest_logit else self.logits

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, with `relative` as logits_relative."""
        return dataclasses.asdict(self) | {"logits_relative": self.relative}


def compare(
    module: torchvision.models.ResNet,
    network: Network,
    arrays: Mapping[str, np.ndarray],
    size: int,
    *,
    images: int = 4,
    seed: int = 0,
) -> Comparison:
    """Runs torchvision's `module` and our `network` with `arrays` on the same normally distributed images.

    A module with one input channel sees the first one of gray images.
    """
    nhwc = np.random.default_rng(seed).standard_normal((images, size, size, 3), np.float32)
    if module.conv1.in_channels == 1:
        nhwc[..., 1:] = nhwc[..., :1]
    theirs, their_logits = torch_activations(module, nhwc)
    ours, our_logits = flax_activations(network, arrays, nhwc)
    assert theirs.keys() == ours.keys(), "the networks have different blocks"
    return Comparison(
        size=size,
        images=images,
        stages={name: _largest(ours[name] - theirs[name]) for name in theirs},
        logits=_largest(our_logits - their_logits),
        largest_logit=_largest(their_logits),
        top1_agreement=float((our_logits.argmax(-1) == their_logits.argmax(-1)).mean()),
    )


def torch_activations(
    module: torchvision.models.ResNet, images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The activations [batch, height, width, channels] after the stem and every block, by name, and the logits."""
    stages: dict[str, np.ndarray] = {}

    def keep(name: str):
        return lambda _module, _inputs, output: stages.__setitem__(name, output.permute(0, 2, 3, 1).numpy())

    blocks = {
        f"layer{stage}.{index}": block
        for stage, layer in enumerate((module.layer1, module.layer2, module.layer3, module.layer4), start=1)
        for index, block in enumerate(layer)
    }
    watched = {"stem": module.maxpool} | blocks
    hooks = [block.register_forward_hook(keep(name)) for name, block in watched.items()]
    try:
        with torch.no_grad():
            channels = torch.from_numpy(images).permute(0, 3, 1, 2)[:, : module.conv1.in_channels]
            logits = module.eval()(channels)
    finally:
        for hook in hooks:
            hook.remove()
    return stages, logits.numpy()


def flax_activations(
    network: Network, arrays: Mapping[str, np.ndarray], images: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """As `torch_activations`, of our network with `arrays`."""

    @jax.jit
    def run(params, batch_stats, images):
        model: Any = network.bind(params, batch_stats)
        return dict(model.stages(images)), model(images)

    params, batch_stats = ({key: arrays[key] for key in part} for part in (network.params, network.batch_stats))
    # Accelerators multiply float32 in fewer bits unless told otherwise.
    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(params, batch_stats, images))


def check(comparisons: Iterable[Comparison]) -> None:
    """Raises UserError where the logits of the two networks are too far apart."""
    for comparison in comparisons:
        if not comparison.relative <= TOLERANCE:  # NaN must fail too
            raise UserError(
                f"the two networks differ: at {comparison.size} px a logit is off by {comparison.relative:.1e} of the "
                f"largest one, more than {TOLERANCE:.0e}; nothing was written, the table shows where it begins"
            )


def table(comparisons: Iterable[Comparison]) -> Table:
    """One row a stage, one column a size."""
    comparisons = list(comparisons)
    view = Table(title="Largest absolute difference between torch and Flax", title_justify="left")
    view.add_column("after")
    for comparison in comparisons:
        view.add_column(f"{comparison.size} px", justify="right")
    for name in comparisons[0].stages:
        view.add_row(name, *(f"{comparison.stages[name]:.1e}" for comparison in comparisons))
    view.add_section()
    view.add_row("logits", *(f"{comparison.logits:.1e}" for comparison in comparisons))
    view.add_row("  relative to the largest", *(f"{comparison.relative:.1e}" for comparison in comparisons))
    view.add_row("same top-1 class", *(f"{comparison.top1_agreement:.0%}" for comparison in comparisons))
    return view


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())
