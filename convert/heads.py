"""Finds the head in a state_dict, under any of its usual names."""

import torch

from convert.reference import Reference, Tensors
from sft_jax.models.weights import some_of

# Names of the module with the head in various libraries.
HEADS = ("fc", "_fc", "linear", "head", "heads", "classifier", "last_linear", "logits")
# Upper bound, because a tensor in a file may claim any shape.
MOST_CLASSES = 2**20


def with_plain_head(
    own: Tensors, beside: Tensors, prefix: str, reference: Reference, place: str
) -> tuple[Tensors, list[str]]:
    """Returns a network with its head as `{place}.weight` and `.bias`, or without head if it is not one linear layer.

    Args:
      own: the network's tensors under the reference's names, possibly including its head.
      beside: tensors without the network's prefix, possibly including its head.
      prefix: prefix of the network's names in the file.
      reference: the network's family.
      place: the reference's name of the head.

    Returns:
      the state_dict, and notices about tensors that were dropped.
    """
    body = {name: tensor for name, tensor in own.items() if name.startswith(reference.body)}
    rest = {name: tensor for name, tensor in own.items() if name not in body}
    heads = {name: name for name in rest if _is_head(name)} or dict(_heads_beside(beside, prefix))
    tensors = {name: (rest | beside)[name] for name in heads}
    head, notices = _plain({heads[name]: tensor for name, tensor in tensors.items()}, reference.width(body), place)
    unused = [name for name in beside if name not in tensors]
    if head:
        unknown = {name: tensor for name, tensor in rest.items() if name not in tensors}
    else:
        # Layers after the backbone that are not a head: projections, prototypes, several heads.
        unknown, unused = {}, [*unused, *(name for name in rest if name not in tensors)]
        what = f"its head ({some_of(list(tensors))}) is not one linear layer and was dropped" if tensors else "no head"
        notices = [f"{what}: the converted file has none, and fine-tuning initialises a new one"]
    if unused:
        notices.append(f"dropped, not part of the network: {some_of(unused)}")
    return body | head | unknown, notices


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in HEADS


def _heads_beside(beside: Tensors, prefix: str):
    """Returns pairs of a head tensor's name, and its name relative to the innermost module that also has the body."""
    outer = prefix
    while outer:
        outer = outer.rstrip(".").rpartition(".")[0]
        outer = f"{outer}." if outer else ""
        inside = [(name, name.removeprefix(outer)) for name in beside if name.startswith(outer)]
        heads = [(name, short) for name, short in inside if _is_head(short)]
        if heads:
            return heads
    return []


def _plain(head: Tensors, width: int | None, place: str) -> tuple[Tensors, list[str]]:
    """Returns the head as one linear layer `place` with `width` inputs (None: any); empty if it is anything else."""
    matrices = [name for name, tensor in head.items() if name.endswith(".weight") and tensor.ndim == 2]
    if len(matrices) != 1:
        return {}, []
    module = matrices[0].removesuffix("weight")
    weight, bias = head[f"{module}weight"], head.get(f"{module}bias")
    classes, inputs = weight.shape
    fits = width in (None, inputs) and 0 < classes <= MOST_CLASSES
    if not fits or not head.keys() <= {f"{module}weight", f"{module}bias"}:
        return {}, []
    notices = [] if module == f"{place}." else [f"using {module.rstrip('.')!r} as its head"]
    if bias is None:
        notices.append("its head has no bias: added one of zeros, which changes nothing")
        bias = torch.zeros(classes, dtype=weight.dtype)
    return {f"{place}.weight": weight, f"{place}.bias": bias}, notices
