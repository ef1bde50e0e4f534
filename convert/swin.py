"""Swin transformers in torch: torchvision's `swin_t`, `swin_s` and `swin_b`.

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
constants: the indices of relative positions, and masks.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from convert import keys
from convert.attention import joined
from convert.names import PREFIX, Dialect, Replacement
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models.swin import VARIANTS, torchvision_path
from sft_jax.models.swin_block import relative_index

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"
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
    own = "attn" if leaf == TABLE else _BLOCK.get(module, module)
    return f"{torchvision_path(f'layers.{stage}.blocks.{block}.{own}')}.{leaf}"


def _later(match: re.Match) -> str:
    """Returns torchvision's name of a reduction that the file counts as the end of the stage before."""
    return f"{torchvision_path(f'layers.{int(match[1]) + 1}.downsample.{match[2]}')}.{match[3]}"


_ENDS: tuple[tuple[str, Replacement], ...] = (
    (r"patch_embed\.proj\.(.+)", r"features.0.0.\1"),
    (r"patch_embed\.norm\.(.+)", r"features.0.2.\1"),
    (
        r"layers\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<module>norm[12]|attn\.qkv|attn\.proj|attn|mlp\.fc[12])\."
        rf"(?P<leaf>weight|bias|{TABLE}|{INDEX})",
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
                rf"(?P<leaf>weight|bias|{TABLE}|{INDEX})",
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
        module.load_state_dict(self.whole(state_dict), strict=True, assign=True)
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
        """Returns the networks with as many blocks in each stage."""
        blocks = {match[1] for name in state_dict if (match := re.match(r"(features\.[1357]\.\d+)\.", name))}
        counts = tuple(sum(block.startswith(f"features.{stage}.") for block in blocks) for stage in (1, 3, 5, 7))
        return [arch for arch, variant in VARIANTS.items() if variant.blocks == counts]

    def whole(self, state_dict: Mapping[str, torch.Tensor]) -> Tensors:
        """See `Reference`; the constants are the indices of relative positions."""
        tables = {name: table for name, table in state_dict.items() if name.endswith(TABLE)}
        return dict(state_dict) | {name.replace(TABLE, INDEX): _index(table) for name, table in tables.items()}

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Joins queries, keys and values, and removes constants."""
        tensors = joined(state_dict)
        for name in state_dict:
            table = tensors.get(name.replace(INDEX, TABLE))
            if name.endswith("attn_mask") or (name.endswith(INDEX) and _is_index(tensors[name], table)):
                del tensors[name]
        return tensors, []


def _index(table: torch.Tensor) -> torch.Tensor:
    """Returns the index of relative positions that belongs to a table of their biases, [window^4]."""
    return torch.from_numpy(relative_index((math.isqrt(len(table)) + 1) // 2).reshape(-1))


def _is_index(tensor: torch.Tensor, table: torch.Tensor | None) -> bool:
    """Returns whether `tensor` is the index that belongs to a table; one with other values is not ours."""
    # The side of a window is small; a tensor in a file may claim any shape.
    if table is None or table.ndim != 2 or len(table) > 2**12 or not keys.is_plain(tensor):
        return False
    wanted = _index(table)
    return tensor.numel() == wanted.numel() and torch.equal(tensor.reshape(-1).long(), wanted)
