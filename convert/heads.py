"""The last layer of a state_dict, whatever a program calls it and however it is made."""

import torch

from sft_jax.models.weights import some_of

Tensors = dict[str, torch.Tensor]

BODY = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
# Modules that hold the head in one program or another.
HEADS = ("fc", "linear", "head", "classifier", "last_linear", "logits")
# A tensor may claim any shape; beyond this it is no head.
MOST_CLASSES = 2**20


def with_plain_head(own: Tensors, beside: Tensors, prefix: str) -> tuple[Tensors, list[str]]:
    """A ResNet with its head as `fc.weight`, `fc.bias`, or without one where the head is no single linear layer.

    Args:
      own: the ResNet's tensors under torchvision's names, perhaps with its head.
      beside: tensors that do not have the ResNet's prefix, perhaps with its head.
      prefix: of the ResNet's names in the file.

    Returns:
      the state_dict, and notices about what was left out.
    """
    body = {name: tensor for name, tensor in own.items() if name.startswith(BODY)}
    rest = {name: tensor for name, tensor in own.items() if name not in body}
    heads = {name: name for name in rest if _is_head(name)} or dict(_heads_beside(beside, prefix))
    tensors = {name: (rest | beside)[name] for name in heads}
    head, notices = _plain({heads[name]: tensor for name, tensor in tensors.items()}, _width(body))
    unused = [name for name in beside if name not in tensors]
    if head:
        unknown = {name: tensor for name, tensor in rest.items() if name not in tensors}
    else:
        # What follows the body but is no head either: projections, prototypes, several heads.
        unknown, unused = {}, [*unused, *(name for name in rest if name not in tensors)]
        what = f"its head ({some_of(list(tensors))}) is not one linear layer and was left out" if tensors else "no head"
        notices = [f"{what}: the converted file has none, and fine-tuning it draws a new one"]
    if unused:
        notices.append(f"no part of the network, left out: {some_of(unused)}")
    return body | head | unknown, notices


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in HEADS


def _heads_beside(beside: Tensors, prefix: str):
    """Pairs of a name and what it is called from the inmost module that holds both the body and it."""
    outer = prefix
    while outer:
        outer = outer.rstrip(".").rpartition(".")[0]
        outer = f"{outer}." if outer else ""
        found = [(name, name.removeprefix(outer)) for name in beside if name.startswith(outer)]
        found = [(name, short) for name, short in found if _is_head(short)]
        if found:
            return found
    return []


def _plain(head: Tensors, width: int | None) -> tuple[Tensors, list[str]]:
    """The head as one linear layer `fc` of `width` inputs (None: any), nothing where it is something else."""
    matrices = [name for name, tensor in head.items() if name.endswith(".weight") and tensor.ndim == 2]
    if len(matrices) != 1:
        return {}, []
    module = matrices[0].removesuffix("weight")
    weight, bias = head[f"{module}weight"], head.get(f"{module}bias")
    classes, inputs = weight.shape
    fits = width in (None, inputs) and 0 < classes <= MOST_CLASSES
    if not fits or not head.keys() <= {f"{module}weight", f"{module}bias"}:
        return {}, []
    notices = [] if module == "fc." else [f"its head was found under {module.rstrip('.')!r}"]
    if bias is None:
        notices.append("its head has no bias: it gets one of zeros, which changes nothing")
        bias = torch.zeros(classes, dtype=weight.dtype)
    return {"fc.weight": weight, "fc.bias": bias}, notices


def _width(body: Tensors) -> int | None:
    """What the last stage gives the head; None where it cannot be told."""
    for norm in ("bn3", "bn2"):
        if f"layer4.0.{norm}.bias" in body:
            return body[f"layer4.0.{norm}.bias"].numel()
    return None
