"""Maps arrays between torch's and Flax's keys and layouts.

| torch             | Flax   | layout                                     |
| ----------------- | ------ | ------------------------------------------ |
| conv weight       | kernel | [out, in, h, w] -> [h, w, in, out]         |
| linear weight     | kernel | [out, in] -> [in, out]                     |
| batch norm weight | scale  |                                            |
| bias              | bias   |                                            |
| running_mean      | mean   |                                            |
| running_var       | var    |                                            |

Module paths are the same on both sides, or are mapped by `Architecture.module_path`; the state_dict has the reference's
names (see `names.py`). Parameters with other leaves or layouts have a `Rule`.
`num_batches_tracked` has no counterpart in Flax and is optional in torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from sft_jax.models import Architecture, Network
from sft_jax.models.weights import mismatches

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"
# Dtypes that are cast to float32. Narrower ones come with separate scales.
OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
# Axis permutation from torch to Flax, by number of axes, and its inverse.
TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def torch_key(flax_key: str, architecture: Architecture) -> str:
    """Returns torch's name, for instance "layer1.0.bn1.weight" for "layer1.0.bn1.scale"."""
    rule = architecture.rule(flax_key)
    if rule is not None:
        return re.sub(rule.ours, rule.theirs, flax_key)
    module, _, leaf = flax_key.rpartition(".")
    return f"{architecture.module_path(module)}.{LEAVES[leaf]}"


def axes_of(flax_key: str, ndim: int, architecture: Architecture) -> tuple[int, ...]:
    """Returns the permutation of torch's axes that gives ours.

    Raises:
      ValueError: the architecture has no rule for a parameter with so many axes.
    """
    rule = architecture.rule(flax_key)
    axes = TO_FLAX.get(ndim) if rule is None else rule.axes
    if axes is None:
        raise ValueError(f"{architecture.name} has no rule for the layout of {flax_key!r}, which has {ndim} axes")
    return axes


def cast(state_dict: Mapping[str, torch.Tensor], network: Network) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Casts floating-point tensors to float32 and counters to int64, if they fit `network`.

    Returns:
      the state_dict, and notices about what was cast.
    """
    shapes = {key: shape for key, (shape, _) in _torch_leaves(network).items()}
    result, kinds = dict(state_dict), Counter[str]()
    for key, tensor in state_dict.items():
        if not is_plain(tensor):
            continue
        # Only if the shape fits, because a tensor in a file may claim any shape.
        if list(tensor.shape) == shapes.get(key) and tensor.dtype in OTHER_FLOATS:
            result[key] = tensor.float()
            kinds[_kind(tensor)] += 1
        elif key.endswith(COUNTER) and tensor.numel() == 1 and not tensor.is_complex():
            result[key] = tensor.reshape(()).nan_to_num().long()
    return result, [f"{count} tensors were cast from {kind} to float32" for kind, count in kinds.items()]


def problems(state_dict: Mapping[str, torch.Tensor], network: Network) -> list[str]:
    """Returns one line per problem that prevents loading a state_dict into `network`: keys, shapes, dtypes, values."""
    wanted = {key: f"{dtype}{shape}" for key, (shape, dtype) in _torch_leaves(network).items()}
    counters = set(_counter_keys(network.batch_stats, network.architecture))
    wanted |= dict.fromkeys(counters & state_dict.keys(), "int64[]")
    described = {key: f"{_kind(tensor)}{list(tensor.shape)}" for key, tensor in state_dict.items()}
    # Only if they fit: a tensor may claim any shape, and some kinds do not support isfinite.
    fitting = [key for key in sorted(described) if described[key] == wanted.get(key)]
    return mismatches(described, wanted) + [
        f"{key} has values that are not finite" for key in fitting if not state_dict[key].isfinite().all()
    ]


def to_flax(state_dict: Mapping[str, torch.Tensor], network: Network) -> dict[str, np.ndarray]:
    """Converts a state_dict without `problems` to the arrays of `network`, under its keys."""
    architecture, arrays = network.architecture, {}
    for key, leaf in (network.params | network.batch_stats).items():
        tensor = state_dict[torch_key(key, architecture)].detach().numpy()
        arrays[key] = np.ascontiguousarray(tensor.transpose(axes_of(key, len(leaf.shape), architecture)))
    return arrays


def to_torch(
    arrays: Mapping[str, np.ndarray], architecture: Architecture, counters: Mapping[str, int] | None = None
) -> dict[str, torch.Tensor]:
    """Converts parameters and batch statistics to a state_dict, the inverse of `to_flax`.

    Args:
      arrays: under the keys of our networks.
      architecture: of the network.
      counters: the result of `counters_of`; None for zeros.
    """
    tensors = {}
    for key, array in arrays.items():
        back = np.argsort(axes_of(key, array.ndim, architecture))
        tensors[torch_key(key, architecture)] = torch.from_numpy(np.array(array.transpose(back), order="C"))
    if counters is None:
        counters = dict.fromkeys(_counter_keys(arrays, architecture), 0)
    return tensors | {key: torch.tensor(count) for key, count in counters.items()}


def image_size(state_dict: Mapping[str, torch.Tensor], architecture: Architecture) -> int | None:
    """Returns the size of the images in pixels that position embeddings are for; None if there are none, or unknown."""
    positions = architecture.positions
    if positions is None or positions.name is None:
        return None
    return positions.size_of({positions.name: state_dict.get(torch_key(positions.name, architecture), np.empty(0))})


def counters_of(state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns batch norm's step counters by torch key; they affect no output, and Flax has no place for them."""
    return {key: int(tensor) for key, tensor in state_dict.items() if key.endswith(COUNTER)}


def is_plain(tensor: torch.Tensor) -> bool:
    """Returns whether the tensor is dense, on the CPU and not quantized."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _kind(tensor: torch.Tensor) -> str:
    if tensor.device.type != "cpu":
        return f"{tensor.device.type} "  # e.g. a meta tensor, which has no values
    sparse = "" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} "
    return sparse + str(tensor.dtype).removeprefix("torch.")


def _torch_leaves(network: Network) -> dict[str, tuple[list[int], str]]:
    """Returns the shape and dtype of each tensor in torch, by its name."""
    leaves = {}
    for key, leaf in (network.params | network.batch_stats).items():
        back = np.argsort(axes_of(key, len(leaf.shape), network.architecture))
        leaves[torch_key(key, network.architecture)] = ([leaf.shape[axis] for axis in back], str(leaf.dtype))
    return leaves


def _counter_keys(flax_keys: Iterable[str], architecture: Architecture) -> list[str]:
    means = (torch_key(key, architecture) for key in flax_keys if key.endswith(".mean"))
    return [key.replace("running_mean", COUNTER) for key in means]
