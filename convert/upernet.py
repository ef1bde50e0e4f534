"""UPerNet in torch: transformers' `UperNetForSemanticSegmentation` on a ConvNeXt or a Swin transformer.

Within the converters the backbone has torchvision's names, below `backbone`, like the classifiers of its family; files
(`openmmlab/upernet-convnext-tiny`, `openmmlab/upernet-swin-tiny`) have Hugging Face's, which the converter back writes.
The auxiliary head only helps in training; it is left out, and so is the norm after a Swin's last map, which
transformers keeps but does not use. `openmmlab/upernet-swin-base` and `-large` have windows of 12 tokens, which no
Swin of torchvision has.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch

from convert.attention import separated
from convert.convnext import ConvNeXtReference
from convert.names import PREFIX, Dialect, Naming, Replacement
from convert.reference import Reference, Tensors, without_values
from convert.swin import INDEX, SwinReference
from sft_jax.models import architecture, convnext, swin
from sft_jax.models.architecture import Architecture
from sft_jax.models.segmentation import BACKBONE, REFERENCES, DenseArchitecture
from sft_jax.models.upernet_head import DECODER, WIDTH

AUXILIARY, UNUSED = "auxiliary_head.", "backbone.norm."
_START = f"{BACKBONE}."
# Between `backbone.` and the names of a Swin in modules of later releases.
_SWIN = r"(?:swin\.)?"
_FAMILIES: dict[str, Reference] = {"convnext": ConvNeXtReference(), "swin": SwinReference()}
# Parts of the names of a Swin in modules of later releases of transformers, and in files.
_LATER = (
    ("backbone.swin.", "backbone."),
    (".attention.q_proj.", ".attention.self.query."),
    (".attention.k_proj.", ".attention.self.key."),
    (".attention.v_proj.", ".attention.self.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".attention.relative_position_bias.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def published_name(name: str) -> str:
    """Returns the name in files of a tensor of a module, of any release of transformers."""
    for later, published in _LATER:
        name = name.replace(later, published)
    return name


class UPerNetReference(Reference):
    """See `Reference`."""

    title = "a UPerNet of transformers'"
    landmark = "first layer of a ConvNeXt or a Swin under a known name"
    body = (_START, DECODER, AUXILIARY)
    dense = True
    lists_tokens = True  # of a Swin

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`. The backbone's names may be torchvision's or those of files."""
        of_file = any(name.startswith(f"{_START}embeddings.") for name in state_dict)
        own = state_dict if of_file else self.whole(state_dict, arch)
        # Not on the meta device: constants, which are not in files, would have no values there.
        module = _network(arch, outputs)
        names = {name: published_name(name) for name in module.state_dict()}
        missing, _ = module.load_state_dict({name: own[names[name]] for name in names if names[name] in own}, False)
        wanted = _names(arch).keys()
        assert not [name for name in missing if names[name] in wanted], "a tensor of the network is missing"
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the backbone's stem, reductions and blocks, and the head before the interpolation."""
        found: Any = module
        backbone = getattr(found.backbone, "swin", found.backbone)
        stages = {"classifier": found.decode_head}
        if hasattr(backbone.encoder, "stages"):
            stages[f"{_START}stem"] = backbone.embeddings
            for index, stage in enumerate(backbone.encoder.stages):
                if index:
                    stages[f"{_START}trunk.{index}.downsample"] = list(stage.downsampling_layer)[-1]
                stages |= {f"{_START}trunk.{index}.blocks.{number}": block for number, block in enumerate(stage.layers)}
            return stages
        stages[f"{_START}patch_embed"] = backbone.embeddings
        for index, stage in enumerate(backbone.encoder.layers):
            stages |= {f"{_START}layers.{index}.blocks.{number}": block for number, block in enumerate(stage.blocks)}
            if stage.downsample is not None:
                stages[f"{_START}layers.{index + 1}.downsample"] = stage.downsample
        return stages

    def logits(self, module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Reference`."""
        return module(given["images"]).logits

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """Returns that of files, and the one to which it is translated."""
        backbone = _backbone(arch)
        own = _FAMILIES[backbone.family].dialects(backbone.name)[0].first.pattern.removeprefix(PREFIX)
        return (_dialect(arch), Dialect("torchvision's", re.compile(PREFIX + re.escape(_START) + own)))

    def sizes(self, arch: str) -> tuple[int, ...]:
        """See `Reference`: multiples of the patches, because transformers pads what a Swin of torchvision cuts off."""
        return (32, 36, 224)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with a backbone of as many blocks in each stage."""
        own = _of_backbone(state_dict)
        backbones = [name for reference in _FAMILIES.values() for name in reference.siblings(own)]
        return [name for name in (f"upernet_{backbone}" for backbone in backbones) if name in REFERENCES]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Leaves out what the network does not use; the rest of the backbone is adapted as that of a classifier."""
        backbone = _backbone(arch)
        kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith((AUXILIARY, UNUSED))}
        own, notices = _FAMILIES[backbone.family].adapted(_of_backbone(kept), backbone.name)
        others = {name: tensor for name, tensor in kept.items() if not name.startswith(_START)}
        for start, what in ((AUXILIARY, "auxiliary head"), (UNUSED, "norm after the last map")):
            if left := [name for name in state_dict if name.startswith(start)]:
                use = "only helps in training" if start == AUXILIARY else "has no effect"
                notices.append(f"its {what} ({len(left)} tensors {start}*), which {use}, was left out")
        return {f"{_START}{name}": tensor for name, tensor in own.items()} | others, notices

    def whole(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> Tensors:
        """Returns a state_dict under the names of files, with queries, keys and values apart."""
        tensors = separated(state_dict)
        # torchvision's layer scale has two axes of size 1 that Hugging Face's lacks.
        tensors |= {name: tensor.flatten() for name, tensor in tensors.items() if name.endswith(".layer_scale")}
        return {name: tensors[own] for name, own in _names(arch).items() if own in tensors}


def _backbone(arch: str) -> Architecture:
    dense = architecture(arch)
    assert isinstance(dense, DenseArchitecture)
    return dense.backbone


def _of_backbone(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Returns the backbone's tensors under the names of a classifier, but for the norms of the maps, which stay."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(_START)}
    return {name.removeprefix(_START): tensor for name, tensor in own.items()}


@functools.cache
def _dialect(arch: str) -> Dialect:
    """Returns that of files, made from Hugging Face's for the classifiers of the backbone's family."""
    backbone = _backbone(arch)
    dialects = _FAMILIES[backbone.family].dialects(backbone.name)
    own = next(dialect for dialect in dialects if dialect.title == "Hugging Face's")

    def named(match: re.Match, replacement: Replacement) -> str:
        return _START + (match.expand(replacement) if isinstance(replacement, str) else replacement(match))

    start = rf"{BACKBONE}\.{_SWIN}"
    return Dialect(
        None,
        re.compile(PREFIX + start + own.first.pattern.removeprefix(PREFIX)),
        tuple((start + pattern, functools.partial(named, replacement=name)) for pattern, name in own.rules),
    )


@functools.cache
def _names(arch: str) -> dict[str, str]:
    """Returns our names of the tensors that the network needs from a file, by their names there."""
    naming = Naming(_dialect(arch), "")
    module = without_values(lambda: _network(arch, 1))
    names = {name: naming.reference_name(name) for name in map(published_name, module.state_dict())}
    return {name: own for name, own in names.items() if not own.startswith(UNUSED) and not own.endswith(INDEX)}


def _network(arch: str, outputs: int) -> torch.nn.Module:
    """Returns the network without stochastic depth and an auxiliary head, with random weights."""
    import transformers

    backbone = _backbone(arch)
    config: Any
    settings: dict[str, Any] = {"out_features": [f"stage{index}" for index in range(1, 5)]}
    if backbone.family == "convnext":
        variant = convnext.VARIANTS[backbone.name]
        settings |= {"depths": list(variant.blocks), "hidden_sizes": list(variant.channels)}
        config = transformers.ConvNextConfig(**settings)
    else:
        own = swin.VARIANTS[backbone.name]
        settings |= {"depths": list(own.blocks), "num_heads": list(own.heads), "embed_dim": own.channels}
        config = transformers.SwinConfig(window_size=own.window, drop_path_rate=0.0, **settings)
    whole = transformers.UperNetConfig(backbone_config=config, hidden_size=WIDTH, use_auxiliary_head=False)
    whole.num_labels = outputs
    return transformers.UperNetForSemanticSegmentation(whole)
