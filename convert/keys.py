"""Maps arrays between torch's and Flax's keys and layouts.

| torch             | Flax   | layout                                     |
| ----------------- | ------ | ------------------------------------------ |
| conv weight       | kernel | [out, in, h, w] -> [h, w, in, out]         |
| linear weight     | kernel | [out, in] -> [in, out]                     |
| batch norm weight | scale  |                                            |
| bias              | bias   |                                            |
| running_mean      | mean   |                                            |
| running_var       | var    |                                            |

Module paths are the same on both sides; the state_dict has torchvision's names (see `names.py`).
`num_batches_tracked` has no counterpart in Flax and is optional in torch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import jax
import numpy as np
import torch

from sft_jax.models import Network
from sft_jax.models.weights import mismatches

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"
# Dtypes that are cast to float32. Narrower ones come with separate scales.
OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
# Axis permutation from torch to Flax, by number of axes, and its inverse.
TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
TO_TORCH = {ndim: tuple(np.argsort(axes).tolist()) for ndim, axes in TO_FLAX.items()}


def torch_key(flax_key: str) -> str:
    """Converts a key, e.g. "layer1.0.bn1.scale" -> "layer1.0.bn1.weight"."""
    module, _, leaf = flax_key.rpartition(".")
    return f"{module}.{LEAVES[leaf]}"


def cast(state_dict: Mapping[str, torch.Tensor], network: Network) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Casts floating-point tensors to float32 and counters to int64, if they fit `network`.

    Returns:
      the state_dict, and notices about what was cast.
    """
    shapes = {torch_key(key): _torch_shape(leaf) for key, leaf in (network.params | network.batch_stats).items()}
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
    leaves = network.params | network.batch_stats
    wanted = {torch_key(key): _described_for_torch(leaf) for key, leaf in leaves.items()}
    counters = {torch_key(key).replace("running_mean", COUNTER) for key in network.batch_stats if key.endswith(".mean")}
    wanted |= dict.fromkeys(counters & state_dict.keys(), "int64[]")
    described = {key: f"{_kind(tensor)}{list(tensor.shape)}" for key, tensor in state_dict.items()}
    # Only if they fit: a tensor may claim any shape, and some kinds do not support isfinite.
    fitting = [key for key in sorted(described) if described[key] == wanted.get(key)]
    return mismatches(described, wanted) + [
        f"{key} has values that are not finite" for key in fitting if not state_dict[key].isfinite().all()
    ]


def to_flax(state_dict: Mapping[str, torch.Tensor], network: Network) -> dict[str, np.ndarray]:
    """Converts a state_dict without `problems` to the arrays of `network`, under its keys."""
    return {
        key: np.ascontiguousarray(state_dict[torch_key(key)].detach().numpy().transpose(TO_FLAX[len(leaf.shape)]))
        for key, leaf in (network.params | network.batch_stats).items()
    }


def to_torch(arrays: Mapping[str, np.ndarray], counters: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """Converts parameters and batch statistics to a state_dict, the inverse of `to_flax`.

    Args:
      arrays: under the keys of our networks.
      counters: the result of `counters_of`; None for zeros.
    """
    tensors = {
        torch_key(key): torch.from_numpy(np.array(array.transpose(TO_TORCH[array.ndim]), order="C"))
        for key, array in arrays.items()
    }
    if counters is None:
        counters = dict.fromkeys(_counter_keys(arrays), 0)
    return tensors | {key: torch.tensor(count) for key, count in counters.items()}


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


def _described_for_torch(leaf: jax.Array) -> str:
    return f"{leaf.dtype}{_torch_shape(leaf)}"


def _torch_shape(leaf: jax.Array) -> list[int]:
    return [leaf.shape[axis] for axis in TO_TORCH[len(leaf.shape)]]


def _counter_keys(flax_keys: Iterable[str]) -> list[str]:
    return [key.removesuffix("mean") + COUNTER for key in flax_keys if key.endswith(".mean")]
