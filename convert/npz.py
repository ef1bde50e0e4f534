"""Reads the `.npz` files of the original vision transformers: google-research/vision_transformer and big_vision.

They hold Flax's arrays. Names are translated to timm's, as `timm.models.vision_transformer._load_weights` does, and
layouts to torch's:

| vision_transformer                                        | timm                |
| --------------------------------------------------------- | ------------------- |
| cls, Transformer/posembed_input/pos_embedding             | cls_token, pos_embed |
| embedding                                                 | patch_embed.proj    |
| Transformer/encoderblock_0/LayerNorm_0, _2 (or _1)        | blocks.0.norm1, norm2 |
| - MultiHeadDotProductAttention_1 (or _0)/query, key, value | blocks.0.attn.q, k, v |
| - MultiHeadDotProductAttention_1 (or _0)/out              | blocks.0.attn.proj  |
| - MlpBlock_3 (or _0)/Dense_0, _1                          | blocks.0.mlp.fc1, fc2 |
| Transformer/encoder_norm                                  | norm                |
| head                                                      | head                |

What stands in brackets is big_vision's.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sft_jax.errors import UserError

# Prefixes of the network's names; beside it may be an optimiser's state, or a network for text.
PREFIXES = ("", "opt/target/", "params/", "params/img/")
BLOCK = r"Transformer/encoderblock_(\d+)/"
NAMES = (
    (r"cls", "cls_token"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
    (r"embedding", "patch_embed.proj"),
    (BLOCK + r"LayerNorm_0", r"blocks.\1.norm1"),
    (BLOCK + r"LayerNorm_[12]", r"blocks.\1.norm2"),
    (BLOCK + r"MultiHeadDotProductAttention_[01]/(q|k|v)(?:uery|ey|alue)", r"blocks.\1.attn.\2"),
    (BLOCK + r"MultiHeadDotProductAttention_[01]/out", r"blocks.\1.attn.proj"),
    (BLOCK + r"MlpBlock_[03]/Dense_0", r"blocks.\1.mlp.fc1"),
    (BLOCK + r"MlpBlock_[03]/Dense_1", r"blocks.\1.mlp.fc2"),
    (r"Transformer/encoder_norm", "norm"),
    (r"head", "head"),
)
STACKED = "Transformer/encoderblock/"  # the blocks of a network that was scanned


def read(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Reads a network under timm's names, and notices about what was renamed and ignored.

    Raises:
      UserError: the file is damaged, is compressed, or has no such network.
    """
    arrays = _arrays(path)
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}embedding/kernel" in arrays), None)
    if prefix is None:
        raise UserError(f"{path} is not a vision transformer of vision_transformer or big_vision: no embedding/kernel")
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    notices = ["its keys are vision_transformer's; renamed to timm's"]
    if ignored := len(arrays) - len(own):
        notices.append(f"ignored {ignored} arrays that are not under {prefix}")
    tensors = {}
    for name, array in _unstacked(own):
        known, tensor = _translated(name, array)
        tensors[known] = tensor
    if "pre_logits/kernel" in own:  # a layer before the head, with tanh between them
        for leaf in ("weight", "bias"):
            tensors[f"head.fc.{leaf}"] = tensors.pop(f"head.{leaf}")
    return tensors, notices


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise UserError(f"{path} is compressed; load it with numpy and np.savez it again")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf" or _is_bfloat16(array)}
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise many types for damaged files
        raise UserError(f"{path} is damaged or was not written by np.savez ({error})") from None


def _unstacked(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all arrays; those of stacked blocks one by one."""
    for name, array in arrays.items():
        if name.startswith(STACKED) and array.ndim:
            rest = name.removeprefix(STACKED)
            yield from ((f"{STACKED.rstrip('/')}_{index}/{rest}", each) for index, each in enumerate(array))
        else:
            yield name, array


def _translated(name: str, array: np.ndarray) -> tuple[str, torch.Tensor]:
    """Returns timm's name and torch's layout of an array; others keep their own, so that they are reported."""
    module, _, leaf = name.rpartition("/")
    if leaf not in ("kernel", "scale", "bias"):
        module, leaf = name, ""
    tensor = _tensor(array)
    if module == "pre_logits":
        return f"head.pre_logits.{'bias' if leaf == 'bias' else 'weight'}", tensor.T if leaf == "kernel" else tensor
    path = next((re.sub(ours, theirs, module) for ours, theirs in NAMES if re.fullmatch(ours, module)), None)
    if path is None:
        return name, tensor
    if leaf == "kernel":
        tensor = _torch_kernel(tensor, path)
    elif leaf == "bias":
        tensor = tensor.flatten()
    return f"{path}.{'bias' if leaf == 'bias' else 'weight'}" if leaf else path, tensor.contiguous()


def _torch_kernel(kernel: torch.Tensor, path: str) -> torch.Tensor:
    if kernel.ndim == 4:  # of the patches
        return kernel.permute(3, 2, 0, 1)
    if kernel.ndim == 3:  # [in, heads, d], or [heads, d, out] after the attention
        kernel = kernel.flatten(0, 1) if path.endswith("proj") else kernel.flatten(1)
    return kernel.T


def _tensor(array: np.ndarray) -> torch.Tensor:
    if _is_bfloat16(array):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _is_bfloat16(array: np.ndarray) -> bool:
    """Returns whether an array has two bytes of no type, as which numpy reads bfloat16."""
    return array.dtype == np.dtype("V2")
