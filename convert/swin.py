"""Swin transformers in torch: torchvision's `swin_t`, `swin_s`, `swin_b`, and `swin_v2_t` to `swin_v2_b`.

| torchvision              | timm                   | Microsoft              | Hugging Face                         |
| ------------------------ | ---------------------- | ---------------------- | ------------------------------------ |
| features.0.0             | patch_embed.proj       | patch_embed.proj       | embeddings.patch_embeddings.projection |
| features.0.2             | patch_embed.norm       | patch_embed.norm       | embeddings.norm                      |
| features.2               | layers.1.downsample    | layers.0.downsample    | encoder.layers.0.downsample          |
| features.3.0             | layers.1.blocks.0      | layers.1.blocks.0      | encoder.layers.1.blocks.0            |
| - norm1, norm2           | - norm1, norm2         | - norm1, norm2         | - layernorm_before, layernorm_after  |
| - attn.qkv               | - attn.qkv             | - attn.qkv             | - attention.self.query, .key, .value |
| - attn.proj              | - attn.proj            | - attn.proj            | - attention.output.dense             |
| - mlp.0, mlp.3           | - mlp.fc1, mlp.fc2     | - mlp.fc1, mlp.fc2     | - intermediate.dense, output.dense   |
| norm, head               | norm, head.fc          | norm, head             | layernorm, classifier                |

Hugging Face has other names in files than in state_dicts since transformers 5. torchvision and Microsoft also keep
constants: the indices of relative positions, their coordinates, and masks. In V2 keys have no bias: torchvision ignores
that part of `attn.qkv.bias`, others have `attn.q_bias` and `attn.v_bias`.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from convert import keys
from convert.attention import joined
from convert.names import PREFIX, Dialect, Replacement
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models.swin import VARIANTS, Variant, torchvision_path
from sft_jax.models.swin_block import relative_index
from sft_jax.models.swin_v2_block import relative_coordinates

TABLE, INDEX, COORDINATES = "relative_position_bias_table", "relative_position_index", "relative_coords_table"
_LEAVES = rf"weight|bias|q_bias|v_bias|logit_scale|{TABLE}|{INDEX}|{COORDINATES}"
# Names within a block of timm's and of Hugging Face's.
_BLOCK = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    **{f"attention.self.{name}": f"attn.{name[0]}" for name in ("query", "key", "value")},
    **{f"attention.{name}_proj": f"attn.{name}" for name in "qkv"},
}  # fmt: skip


def _name(match: re.Match) -> str:
    """Returns torchvision's name for a tensor of a block; `match` has the groups stage, block, module, and leaf."""
    stage, block, module, leaf = match.group("stage", "block", "module", "leaf")
    own = "attn" if leaf in (TABLE, INDEX) else _BLOCK.get(module, module)
    return f"{torchvision_path(f'layers.{stage}.blocks.{block}.{own}')}.{leaf}"


def _later(match: re.Match) -> str:
    """Returns torchvision's name of a reduction that the file counts as the end of the stage before."""
    return f"{torchvision_path(f'layers.{int(match[1]) + 1}.downsample.{match[2]}')}.{match[3]}"


_ENDS: tuple[tuple[str, Replacement], ...] = (
    (r"patch_embed\.proj\.(.+)", r"features.0.0.\1"),
    (r"patch_embed\.norm\.(.+)", r"features.0.2.\1"),
    (
        r"layers\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\."
        rf"(?P<module>norm[12]|attn|attn\.qkv|attn\.proj|attn\.cpb_mlp\.[02]|mlp\.fc[12])\.(?P<leaf>{_LEAVES})",
        _name,
    ),
)
DIALECTS = (
    Dialect(None, re.compile(PREFIX + r"features\.1\.0\.attn\.proj\.weight")),
    Dialect(
        "timm's",
        re.compile(PREFIX + r"layers\.3\.downsample\.reduction\.weight"),
        (
            *_ENDS,
            (r"layers\.(\d)\.downsample\.(.+)", lambda match: f"features.{2 * int(match[1])}.{match[2]}"),
            (r"head\.fc\.(.+)", r"head.\1"),
        ),
    ),
    Dialect(
        "Microsoft's",
        re.compile(r"(?!(?:.*\.)?encoder\.layers\.)" + PREFIX + r"layers\.0\.downsample\.reduction\.weight"),
        (
            *_ENDS,
            (r"layers\.(\d)\.downsample\.(norm|reduction)\.(.+)", _later),
            (r"layers\.(\d)\.blocks\.(\d+)\.attn_mask", r"layers.\1.blocks.\2.attn_mask"),
        ),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + r"encoder\.layers\.0\.blocks\.0\.attention\.(?:self\.query|q_proj)\.weight"),
        (
            (r"embeddings\.patch_embeddings\.projection\.(.+)", r"features.0.0.\1"),
            (r"embeddings\.norm\.(.+)", r"features.0.2.\1"),
            (r"encoder\.layers\.(\d)\.downsample\.(norm|reduction)\.(.+)", _later),
            (
                r"encoder\.layers\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<module>.+)\."
                rf"(?P<leaf>{_LEAVES})",
                _name,
            ),
            (r"layernorm\.(.+)", r"norm.\1"),
        ),
    ),
)


class SwinReference(Reference):
    """See `Reference`."""

    title = "a Swin transformer"
    landmark = "first block under a known name"
    body = ("features.", "norm.")
    channels_last = True

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_network(arch, outputs)
        module.load_state_dict(self.whole(state_dict, arch), strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embedding of patches, every reduction and every block."""
        found: Any = module
        embedding, *rest = found.features
        stages = {"patch_embed": embedding}
        for index, (blocks, reduction) in enumerate(zip(rest[::2], [None, *rest[1::2]], strict=True)):
            if reduction is not None:
                stages[f"layers.{index}.downsample"] = reduction
            stages |= {f"layers.{index}.blocks.{number}": block for number, block in enumerate(blocks)}
        return stages

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        return state_dict["norm.bias"].numel() if "norm.bias" in state_dict else None

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks of the same version with as many blocks in each stage."""
        second = "features.1.0.attn.logit_scale" in state_dict
        blocks = {match[1] for name in state_dict if (match := re.match(r"(features\.[1357]\.\d+)\.", name))}
        counts = tuple(sum(block.startswith(f"features.{stage}.") for block in blocks) for stage in (1, 3, 5, 7))
        return [arch for arch, variant in VARIANTS.items() if (variant.blocks, variant.second) == (counts, second)]

    def whole(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> Tensors:
        """See `Reference`; the constants are indices of relative positions and, in V2, coordinates."""
        return dict(state_dict) | _constants(state_dict, VARIANTS[arch])

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Joins queries, keys and values, and removes constants."""
        tensors, constants = joined(state_dict), _constants(state_dict, VARIANTS[arch])
        for name in list(tensors):
            wanted = constants.get(name)
            if name.endswith("attn_mask") or (wanted is not None and _holds(tensors[name], wanted)):
                del tensors[name]
            elif name.endswith(".attn.q_bias"):
                value = tensors.get(name.replace("q_bias", "v_bias"))
                query = tensors[name]
                if value is not None and keys.is_plain(query) and query.shape == value.shape and query.ndim == 1:
                    del tensors[name], tensors[name.replace("q_bias", "v_bias")]
                    tensors[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
        return tensors, []


def _constants(state_dict: Mapping[str, torch.Tensor], variant: Variant) -> Tensors:
    """Returns the constants of the network that a state_dict belongs to."""
    index = torch.from_numpy(relative_index(variant.window).reshape(-1))
    coordinates = torch.from_numpy(relative_coordinates(variant.window))[None]
    attentions = {name.removesuffix("proj.weight") for name in state_dict if name.endswith(".attn.proj.weight")}
    constants = {f"{attention}{INDEX}": index for attention in attentions}
    if variant.second:
        constants |= {f"{attention}{COORDINATES}": coordinates for attention in attentions}
    return constants


def _holds(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Returns whether a tensor holds a constant, up to rounding and to its shape."""
    if not keys.is_plain(tensor) or tensor.numel() != wanted.numel():
        return False
    return torch.allclose(tensor.reshape(-1).double(), wanted.reshape(-1).double(), atol=1e-6)
