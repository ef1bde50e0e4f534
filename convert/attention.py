"""Joins and separates the queries, keys and values of an attention, which some libraries keep apart."""

import re
from collections.abc import Mapping

import torch

from convert import keys

Tensors = dict[str, torch.Tensor]


def joined(state_dict: Mapping[str, torch.Tensor]) -> Tensors:
    """Returns the state_dict with queries, keys and values as one matrix, where they are three."""
    tensors = dict(state_dict)
    for name in state_dict:
        if match := re.fullmatch(r"(.+\.attn\.)q\.(weight|bias)", name):
            parts = [f"{match[1]}{kind}.{match[2]}" for kind in "qkv"]
            # Only what fits and is plain: a tensor in a file may claim any shape.
            if all(_alike(tensors.get(part), tensors[name]) for part in parts):
                tensors[f"{match[1]}qkv.{match[2]}"] = torch.cat([tensors.pop(part) for part in parts])
    return tensors


def separated(state_dict: Mapping[str, torch.Tensor]) -> Tensors:
    """Returns the state_dict with queries, keys and values as three matrices, the inverse of `joined`."""
    tensors: Tensors = {}
    for name, tensor in state_dict.items():
        if match := re.fullmatch(r"(.+\.attn\.)qkv\.(weight|bias)", name):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            tensors |= {f"{match[1]}{kind}.{match[2]}": part.clone() for kind, part in parts}
        else:
            tensors[name] = tensor
    return tensors


def _alike(tensor: torch.Tensor | None, other: torch.Tensor) -> bool:
    return tensor is not None and keys.is_plain(tensor) and (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
