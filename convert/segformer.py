"""SegFormer in torch: transformers' `SegformerForSemanticSegmentation`, and its encoders, Mix Transformers, alone.

Published files (`nvidia/segformer-b0-finetuned-ade-512-512`, `nvidia/mit-b0`) have the names of the first releases of
transformers, which it renames when it reads them since the modules have others:

| published files                                   | modules of later releases                  |
| ------------------------------------------------- | ------------------------------------------ |
| segformer.encoder.patch_embeddings.0              | segformer.stages.0.patch_embeddings        |
| segformer.encoder.block.0.1.attention.self.query  | segformer.stages.0.blocks.1.attention.q_proj |
| segformer.encoder.layer_norm.0                    | segformer.stages.0.layer_norm              |
| decode_head.linear_c.0.proj                       | decode_head.linear_projections.0.proj      |

Files of the encoder alone leave out `segformer.`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from convert.names import PREFIX, Dialect
from convert.reference import Reference, without_values
from sft_jax.models.mit import DECODER, ENCODER, VARIANTS

# Parts of names in published files, and in modules of later releases.
_PARTS = (
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.self.sr.", "attention.sequence_reduction.sequence_reduction."),
    ("attention.self.layer_norm.", "attention.sequence_reduction.layer_norm."),
    ("attention.output.dense.", "attention.o_proj."),
    ("mlp.dense1.", "mlp.fc1."),
    ("mlp.dense2.", "mlp.fc2."),
    ("layer_norm_1.", "layernorm_before."),
    ("layer_norm_2.", "layernorm_after."),
)
_FIRST = r"patch_embeddings\.0\.proj\.weight"


def later_name(name: str) -> str:
    """Returns the name in modules of later releases of a tensor of published files."""
    if name.startswith(DECODER):
        return name.replace(".linear_c.", ".linear_projections.")
    name = re.sub(r"encoder\.(patch_embeddings|layer_norm)\.(\d)", r"stages.\2.\1", name)
    name = re.sub(r"encoder\.block\.(\d)", r"stages.\1.blocks", name)
    for published, later in _PARTS:
        name = name.replace(published, later)
    return name


def _published_name(match: re.Match) -> str:
    """Returns the name in published files of a tensor of a stage in modules of later releases, the inverse."""
    stage, kind, rest = match.groups()
    for published, later in _PARTS:
        rest = rest.replace(later, published)
    return f"{ENCODER}{'block' if kind == 'blocks' else kind}.{stage}.{rest}"


DIALECTS = (
    Dialect(None, re.compile(rf"{PREFIX}segformer\.encoder\.{_FIRST}")),
    Dialect(
        "those of the encoder alone",
        re.compile(rf"{PREFIX}(?<!\bsegformer\.)encoder\.{_FIRST}"),
        ((r"(encoder\..+)", r"segformer.\1"),),
    ),
    Dialect(
        "those of transformers' modules",
        re.compile(rf"{PREFIX}(?<!\bsegformer\.)(?:segformer\.)?stages\.0\.patch_embeddings\.proj\.weight"),
        (
            (r"(?:segformer\.)?stages\.(\d)\.(\w+)\.(.+)", _published_name),
            (r"decode_head\.linear_projections\.(.+)", r"decode_head.linear_c.\1"),
        ),
    ),
)


class MitReference(Reference):
    """See `Reference`."""

    title = "a Mix Transformer"
    landmark = "segformer.encoder.patch_embeddings.0.proj.weight"
    body: tuple[str, ...] = (ENCODER,)
    lists_tokens = True

    def empty(self, arch: str, outputs: int) -> torch.nn.Module:
        """Returns the network `arch`, without stochastic depth, if possible on the meta device."""
        import transformers

        variant = VARIANTS[arch.removeprefix("segformer_")]
        config = transformers.SegformerConfig(
            depths=list(variant.blocks),
            hidden_sizes=list(variant.channels),
            decoder_hidden_size=variant.decoder,
            drop_path_rate=0.0,
        )
        config.num_labels = outputs
        kind = getattr(transformers, f"SegformerFor{'SemanticSegmentation' if self.dense else 'ImageClassification'}")
        return without_values(lambda: kind(config))

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`. The names may be those of files or of modules."""
        module, own = self.empty(arch, outputs), dict(state_dict)
        if not own.keys() <= module.state_dict().keys():
            own = {later_name(name): tensor for name, tensor in own.items()}
        module.load_state_dict(own, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the patches, blocks and norms of each stage."""
        encoder: Any = module.segformer
        if hasattr(encoder, "stages"):
            parts = [(stage.patch_embeddings, stage.blocks, stage.layer_norm) for stage in encoder.stages]
        else:
            encoder = encoder.encoder
            parts = list(zip(encoder.patch_embeddings, encoder.block, encoder.layer_norm, strict=True))
        found = {}
        for stage, (patches, blocks, norm) in enumerate(parts):
            found[f"patch_embeddings.{stage}"] = patches
            found |= {f"block.{stage}.{index}": block for index, block in enumerate(blocks)}
            found[f"layer_norm.{stage}"] = norm
        return found

    def logits(self, module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Reference`."""
        return module(given["images"]).logits

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norm = state_dict.get(f"{ENCODER}layer_norm.3.bias")
        return None if norm is None else norm.numel()

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the network with as many blocks of as many channels."""
        found = dict.fromkeys(range(4), (0, 0))
        for name, tensor in state_dict.items():
            if match := re.fullmatch(rf"{ENCODER}block\.(\d)\.(\d+)\.layer_norm_1\.bias", name):
                stage, blocks = int(match[1]), int(match[2]) + 1
                found[stage] = max(found[stage], (blocks, tensor.numel()))
        start = "segformer_" if self.dense else ""
        return [
            f"{start}{arch}"
            for arch, variant in VARIANTS.items()
            if list(found.values()) == list(zip(variant.blocks, variant.channels, strict=True))
        ]


class SegformerReference(MitReference):
    """See `Reference`."""

    title = "a SegFormer"
    body = (ENCODER, DECODER)
    dense = True

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns those of the encoder, and the head before the interpolation."""
        found: Any = module
        encoder = {f"backbone.{name}": stage for name, stage in super().stages(module).items()}
        return encoder | {"classifier": found.decode_head}

    def logits(self, module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Reference`: interpolated, as transformers' image processor does, which the module leaves to it."""
        logits, size = super().logits(module, given), given["images"].shape[2:]
        return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
