"""Checkpoints in the formats of other libraries, for the tests of the converter."""

import argparse
import collections
import datetime
import pathlib

import numpy as np
import safetensors.torch
import torch
import torchvision

CLASSES = 5


def trained(arch: str = "resnet18", classes: int = CLASSES) -> dict[str, torch.Tensor]:
    """Returns the state_dict of a network whose norms and counters are not at their initial values."""
    torch.manual_seed(0)
    module = torchvision.models.get_model(arch, weights=None, num_classes=classes)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 1.5)
            norm.num_batches_tracked += 123
    return dict(module.state_dict())


def genuine(state_dict: dict[str, torch.Tensor]) -> collections.OrderedDict:
    """Imitates torchvision's V1 files: parameters that require gradients, plain statistics, no counters."""
    return collections.OrderedDict(
        (key, tensor if "running" in key else torch.nn.Parameter(tensor))
        for key, tensor in state_dict.items()
        if not key.endswith("num_batches_tracked")
    )


def with_prefix(prefix: str, tensors: dict) -> dict:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def body(tensors: dict) -> dict:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("fc.")}


def head(tensors: dict, name: str) -> dict:
    return {f"{name}.{leaf}": tensors[f"fc.{leaf}"] for leaf in ("weight", "bias")}


def floats(tensors: dict, change) -> dict:
    return {key: change(tensor) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def counters(tensors: dict, change) -> dict:
    return {key: change(tensor) if key.endswith("tracked") else tensor for key, tensor in tensors.items()}


def hugging_face(tensors: dict) -> dict:
    """Uses the names of transformers.ResNetForImageClassification."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    renamed = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        parts = module.split(".")
        if module == "fc":
            renamed[f"classifier.1.{leaf}"] = tensor
        elif len(parts) == 1:
            renamed[f"resnet.embedder.embedder.{kinds[module[:-1]]}.{leaf}"] = tensor
        else:
            layer = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
            shortcut = f"shortcut.{list(kinds.values())[int(parts[3])]}" if parts[2] == "downsample" else None
            renamed[f"{layer}.{shortcut or f'layer.{int(parts[2][-1]) - 1}.{kinds[parts[2][:-1]]}'}.{leaf}"] = tensor
    return renamed


def sequential(tensors: dict) -> dict:
    """Uses the names of torch.nn.Sequential(*list(resnet.children())[:-1])."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = ((*key.partition("."), tensor) for key, tensor in body(tensors).items())
    return {f"{places[first]}.{rest}": tensor for first, _, rest, tensor in parts}


def kuangliu(tensors: dict) -> dict:
    """Uses the names of kuangliu's CIFAR models, which most tutorials copy."""
    renamed = {key.replace("downsample", "shortcut"): tensor for key, tensor in body(tensors).items()}
    return renamed | head(tensors, "linear")


class Subclass(collections.OrderedDict):
    """A state_dict with `_metadata`, as `state_dict()` returns it."""


def with_metadata(tensors: dict) -> collections.OrderedDict:
    state_dict = collections.OrderedDict(tensors)
    state_dict._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return state_dict


LEFTOVERS = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.PosixPath("runs/x"), seen=np.arange(3)),
    "metric": np.float64(71.2),
    "time": datetime.timedelta(seconds=3),
    "log": collections.defaultdict(list, {"loss": [0.1]}),
}

# What is saved for a state_dict d, and fragments of the expected notices in order. All of them convert to d.
SAME = {
    "plain": (lambda d: d, []),
    "metadata": (with_metadata, []),
    "parameters": (lambda d: floats(d, torch.nn.Parameter), []),
    "buffers": (lambda d: floats(d, torch.nn.Buffer), []),
    "not contiguous": (lambda d: floats(d, lambda t: t.T.contiguous().T if t.ndim == 2 else t[None].clone()[0]), []),
    "channels last": (
        lambda d: floats(d, lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t),
        [],
    ),
    "counters of another type": (lambda d: counters(d, lambda t: t.int()), []),
    "counters in half": (lambda d: counters(d, lambda t: t.half()), []),
    "counters of one element": (lambda d: counters(d, lambda t: t[None]), []),
    "state_dict": (lambda d: {"state_dict": d, "epoch": 3}, ["under 'state_dict'"]),
    "model": (lambda d: {"model": d, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}, ["under 'model'"]),
    "model_state_dict": (lambda d: {"model_state_dict": d, "loss": torch.tensor(0.1)}, ["under 'model_state_dict'"]),
    "nested": (lambda d: {"checkpoint": {"net": d, "acc": 93.0}}, ["under 'checkpoint.net'"]),
    "leftovers": (lambda d: {"state_dict": d, **LEFTOVERS}, ["under 'state_dict'"]),
    "averaged beside": (
        lambda d: {
            "model": d,
            "model_ema": {"n_averaged": torch.tensor(9), **with_prefix("module.", floats(d, torch.zeros_like))},
        },
        ["under 'model'", "other weights are available with --key model_ema"],
    ),
    "averaged alone": (lambda d: {"state_dict_ema": d}, ["under 'state_dict_ema'"]),
    "teacher beside": (
        lambda d: {**with_prefix("student.", d), **with_prefix("teacher.", floats(d, torch.zeros_like))},
        ["with --key teacher", "removed the prefix 'student.' from its keys"],
    ),
    "two names for one": (
        lambda d: {"state_dict": {**with_prefix("model.", d), **with_prefix("net.", d)}},
        ["under 'state_dict'", "removed the prefix 'model.' from its keys"],
    ),
    "DataParallel": (lambda d: with_prefix("module.", d), ["removed the prefix 'module.' from every key"]),
    "DataParallel, wrapped": (
        lambda d: {"state_dict": with_prefix("module.", d)},
        ["under 'state_dict'", "removed the prefix 'module.' from every key"],
    ),
    "compiled": (lambda d: with_prefix("module._orig_mod.", d), ["'module._orig_mod.' from every key"]),
    "Lightning": (
        lambda d: {"state_dict": {**with_prefix("model.", d), "criterion.weight": torch.ones(5)}, "loops": {}},
        ["under 'state_dict'", "'model.' from its keys", "dropped, not part of the network: criterion.weight"],
    ),
    "profiled": (
        lambda d: {**d, "total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
        [],
    ),
    "averaged within": (
        lambda d: {**d, **with_prefix("model_ema.", floats(d, torch.zeros_like))},
        ["with --key model_ema"],
    ),
    "mmpretrain": (
        lambda d: {"meta": {}, "state_dict": {**with_prefix("backbone.", body(d)), **head(d, "head.fc")}},
        ["under 'state_dict'", "'backbone.' from its keys", "using 'head.fc' as its head"],
    ),
    "body and head": (
        lambda d: {**with_prefix("net.encoder.", body(d)), **head(d, "net.classifier")},
        ["'net.encoder.' from its keys", "using 'classifier' as its head"],
    ),
    "head after dropout": (
        lambda d: {**body(d), **head(d, "fc.1")},
        ["using 'fc.1' as its head"],
    ),
    "Hugging Face": (
        hugging_face,
        ["'resnet.' from its keys", "its keys are Hugging Face's", "using 'classifier.1' as its head"],
    ),
    "Sequential": (
        lambda d: {**with_prefix("features.", sequential(d)), **head(d, "fc")},
        ["'features.' from its keys", "torch.nn.Sequential"],
    ),
    "kuangliu": (kuangliu, ["using 'linear' as its head"]),
}


def save_safetensors(tensors: dict, path, **metadata: str) -> None:
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"} | metadata)
