"""DINOv3's vision transformers in torch: timm's `vit_*_patch16_dinov3`, with `_qkvb` or without.

| timm                     | facebookresearch     | Hugging Face                               |
| ------------------------ | -------------------- | ------------------------------------------ |
| cls_token, reg_token     | cls_token, storage_tokens | embeddings.cls_token, .register_tokens |
| patch_embed.proj         | patch_embed.proj     | embeddings.patch_embeddings                |
| blocks.0.gamma_1         | blocks.0.ls1.gamma   | layer.0.layer_scale1.lambda1               |
| blocks.0.attn.qkv        | blocks.0.attn.qkv    | layer.0.attention.q_proj, .k_proj, .v_proj |
| blocks.0.attn.q_bias, v_bias | blocks.0.attn.qkv.bias | layer.0.attention.q_proj.bias, .v_proj.bias |
| blocks.0.attn.proj       | blocks.0.attn.proj   | layer.0.attention.o_proj                   |
| blocks.0.mlp.fc1, fc2    | blocks.0.mlp.fc1, fc2 | layer.0.mlp.up_proj, .down_proj           |

Keys have no bias. Constants (periods of rotations, masks of biases) are computed here, as in timm.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from convert import keys
from convert.attention import joined
from convert.names import PREFIX, Dialect
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models.dinov3 import BIASED, VARIANTS
from sft_jax.models.rotary import periods

_LAYER = r"(?:model\.)?layer\.(\d+)\."
DIALECTS = (
    Dialect(
        None,
        re.compile(PREFIX + r"blocks\.0\.attn\.proj\.weight"),
        ((r"storage_tokens", "reg_token"), (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2")),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + r"embeddings\.patch_embeddings\.weight"),
        (
            (r"embeddings\.(cls_token|mask_token)", r"\1"),
            (r"embeddings\.register_tokens", "reg_token"),
            (r"embeddings\.patch_embeddings\.(.+)", r"patch_embed.proj.\1"),
            (_LAYER + r"(norm[12]\..+)", r"blocks.\1.\2"),
            (_LAYER + r"attention\.([qkv])_proj\.(.+)", r"blocks.\1.attn.\2.\3"),
            (_LAYER + r"attention\.o_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
            (_LAYER + r"mlp\.up_proj\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (_LAYER + r"mlp\.down_proj\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
        ),
    ),
)
# Of pretraining, and constants.
UNUSED = re.compile(r"mask_token|local_cls_norm\..+|rope_embed\.periods|blocks\.\d+\.attn\.qkv\.bias_mask")


class DinoV3Reference(Reference):
    """See `Reference`."""

    title = "a vision transformer of DINOv3"
    landmark = "blocks.0.attn.proj.weight"
    body = (
        *("cls_token", "reg_token", "mask_token", "patch_embed.", "blocks.", "norm."),
        *("rope_embed.", "local_cls_norm."),
    )

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module: Any = empty_network(arch, outputs)
        module.load_state_dict(state_dict, strict=True, assign=True)
        # Constants are not in the state_dict.
        variant = VARIANTS[arch]
        module.rope.register_buffer("periods", torch.from_numpy(periods(variant.width // variant.heads)), False)
        for block in module.blocks:
            if variant.biases:
                block.attn.register_buffer("k_bias", torch.zeros(variant.width), False)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embedding and every block."""
        found: Any = module
        return {"embedding": found.norm_pre} | {f"blocks.{index}": block for index, block in enumerate(found.blocks)}

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return DIALECTS

    def sizes(self, arch: str) -> tuple[int, ...]:
        """Returns a few sizes that patches tile."""
        return tuple(VARIANTS[arch].patch * side for side in (2, 3, 14))

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        return state_dict["norm.bias"].numel() if "norm.bias" in state_dict else None

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with such patches and as many blocks."""
        kernel = state_dict.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 4:
            return []
        width, _, patch, _ = kernel.shape
        depth = len({match[1] for name in state_dict if (match := re.match(r"blocks\.(\d+)\.", name))})
        return [
            arch for arch, each in VARIANTS.items() if (each.width, each.patch, each.depth) == (width, patch, depth)
        ]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Joins queries, keys and values, and drops constants, and biases that are 0 if `arch` has none."""
        notices = []
        if "mask_token" in state_dict:
            notices.append("dropped mask_token, which only pretraining uses")
        tensors = joined({name: tensor for name, tensor in state_dict.items() if not UNUSED.fullmatch(name)})
        for name in list(tensors):
            if match := re.fullmatch(r"(blocks\.\d+\.attn\.)([qv])\.bias", name):
                tensors[f"{match[1]}{match[2]}_bias"] = tensors.pop(name)
            elif name.endswith(".attn.qkv.bias") and tensors[name].ndim == 1 and len(tensors[name]) % 3 == 0:
                query, _, value = tensors.pop(name).chunk(3)
                start = name.removesuffix("qkv.bias")
                tensors |= {f"{start}q_bias": query, f"{start}v_bias": value}
        biases = [name for name in tensors if re.fullmatch(r"blocks\.\d+\.attn\.[qv]_bias", name)]
        if biases and not arch.endswith(BIASED) and all(_is_zero(tensors[name]) for name in biases):
            for name in biases:
                del tensors[name]
            notices.append("dropped the biases of its queries and values, which all are 0")
        return tensors, notices


def _is_zero(tensor: torch.Tensor) -> bool:
    return keys.is_plain(tensor) and tensor.ndim == 1 and not tensor.any()
