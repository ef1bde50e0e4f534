"""Tiny networks of texts, here and in torch, and files of them as transformers writes them."""

import json

import safetensors.torch
import torch
from reference_checks import CLASSES, moved

from convert import resnet_to_flax
from convert.families import REFERENCES
from sft_jax.models import ARCHITECTURES, bert, modernbert
from sft_jax.models.bert import DISTILBERT, ROBERTA

_MODERN = modernbert.Variant(24, 4, 3, 36, window=4, vocabulary=40, padding=7)
# Their modules and what distinguishes them.
TINY = {
    "bert_of_test": (bert, bert.Variant(40, 24, 2, 3)),
    "mean_of_test": (bert, bert.Variant(40, 24, 2, 3, pool="mean")),
    "roberta_of_test": (bert, bert.Variant(40, 24, 2, 3, kind=ROBERTA)),
    "distilbert_of_test": (bert, bert.Variant(40, 24, 2, 3, kind=DISTILBERT)),
    "modernbert_of_test": (modernbert, _MODERN),
    "modernbert_of_test_cls": (modernbert, modernbert.Variant(24, 4, 3, 36, "cls", 4, 40, 7)),
}
TOKENIZER = {"model": {"vocab": {"[PAD]": 0, "good": 1, "bad": 2}}, "added_tokens": [{"id": 39, "content": "[X]"}]}


def register(monkeypatch):
    """Makes the networks of `TINY` known."""
    for name, (family, variant) in TINY.items():
        monkeypatch.setitem(family.VARIANTS, name, variant)
        monkeypatch.setitem(ARCHITECTURES, name, family.architecture(name, variant))


def reference_of(name):
    return REFERENCES[ARCHITECTURES[name].family]


def torch_network(name, outputs=CLASSES):
    """Returns transformers' network with weights other than those of initialisation."""
    reference = reference_of(name)
    shapes = reference.empty(name, outputs).state_dict()
    zeros = {key: torch.zeros(tensor.shape) for key, tensor in shapes.items()}
    return moved(reference.module(name, outputs, zeros, "imagenet"))


def saved(tensors, folder, tokenizer=TOKENIZER):
    """Writes a state_dict, and a tokenizer beside it; returns the file."""
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder / "model.safetensors"


def converted(file, arch, *flags):
    """Converts a file as the command does; returns the result."""
    output = file.with_name("ours.safetensors")
    args = resnet_to_flax.parse(["--arch", arch, "--state-dict", str(file), "--output", str(output), *flags])
    own = {name: getattr(args, name) for name in ("size", "tokenizer", "classes") if getattr(args, name) is not None}
    resnet_to_flax.convert(args.arch, args.state_dict, args.weights, output, **own)
    return output
