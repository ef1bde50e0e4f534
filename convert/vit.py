"""Vision transformers in torch: torchvision's, timm's, and the files of others that timm's networks can hold.

Names in files:

| timm                   | torchvision                  | Hugging Face                            | facebookresearch |
| ---------------------- | ---------------------------- | --------------------------------------- | ---------------- |
| cls_token              | class_token                  | embeddings.cls_token                    | cls_token        |
| reg_token              |                              | embeddings.register_tokens              | register_tokens  |
| pos_embed              | encoder.pos_embedding        | embeddings.position_embeddings          | pos_embed        |
| patch_embed.proj       | conv_proj                    | embeddings.patch_embeddings.projection  | patch_embed.proj |
| blocks.0.norm1, norm2  | ...encoder_layer_0.ln_1      | ...0.layernorm_before, norm1            | blocks.0.norm1   |
| blocks.0.attn.qkv      | ...self_attention.in_proj_   | ...0.attention.attention.query, .key    | blocks.0.attn.qkv |
| blocks.0.ls1.gamma     |                              | ...0.layer_scale1.lambda1               | ls1.gamma, gamma_1 |

Hugging Face's ViT has an epsilon of 1e-12 in its norms, where the original, timm and we have 1e-6.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from convert import keys
from convert.attention import joined
from convert.names import PREFIX, Dialect
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models import ARCHITECTURES, architecture
from sft_jax.models.vit import MEAN

_LAYER = r"(?:encoder\.layer|layers|encoder\.layers)\.(\d+)\."
TIMM = (
    Dialect(
        None,
        re.compile(PREFIX + r"blocks\.0\.attn\.proj\.weight"),  # qkv may be three, until `adapted` joins them
        ((r"register_tokens", "reg_token"), (r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma")),
    ),
    Dialect(
        "Hugging Face's",
        re.compile(PREFIX + _LAYER.replace(r"(\d+)", "0") + r"attention\.(?:attention\.query|q_proj)\.weight"),
        (
            (r"embeddings\.(cls_token|mask_token)", r"\1"),
            (r"embeddings\.register_tokens", "reg_token"),
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
            (_LAYER + r"(?:layernorm_before|norm1)\.(.+)", r"blocks.\1.norm1.\2"),
            (_LAYER + r"(?:layernorm_after|norm2)\.(.+)", r"blocks.\1.norm2.\2"),
            (_LAYER + r"attention\.(?:attention\.(?:query|key|value)|[qkv]_proj)\.(.+)", lambda match: _part(match)),
            (_LAYER + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
            (_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
            (_LAYER + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
            (_LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (r"layernorm\.(.+)", r"norm.\1"),
        ),
    ),
)
TORCHVISION = (
    Dialect(
        None,
        re.compile(PREFIX + r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight"),
        (  # before torchvision 0.14
            (r"(encoder\.layers\..+\.mlp)\.linear_1\.(.+)", r"\1.0.\2"),
            (r"(encoder\.layers\..+\.mlp)\.linear_2\.(.+)", r"\1.3.\2"),
        ),
    ),
)


# Names of the last norm.
NORMS = ("norm.bias", "fc_norm.bias", "encoder.ln.bias")
# The kernel that embeds patches, the names of blocks, and whose names these are.
PLACES = (
    ("patch_embed.proj.weight", r"blocks\.(\d+)\.", "timm"),
    ("conv_proj.weight", r"encoder\.layers\.encoder_layer_(\d+)\.", "torchvision"),
)


def _part(match: re.Match) -> str:
    """Returns a name for the queries, keys or values alone, which `VitReference.adapted` joins."""
    kind = re.search(r"query|key|value|[qkv]_proj", match[0])
    assert kind is not None
    return f"blocks.{match[1]}.attn.{kind[0][0]}.{match[2]}"


class VitReference(Reference):
    """See `Reference`."""

    title = "a vision transformer"
    landmark = "blocks.0.attn.proj.weight"
    body = (
        *("cls_token", "reg_token", "mask_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "fc_norm."),
        *("class_token", "conv_proj.", "encoder."),
    )

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """Returns torchvision's or timm's network for images of the size that the position embeddings are for."""
        own = dict(state_dict)
        if _places_registers(own):
            own["pos_embed"] = own["pos_embed"][:, 1:]  # `adapted` has added the first to the class token
        size = keys.image_size(own, architecture(arch))
        module = empty_network(arch, outputs, size)
        module.load_state_dict(own, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the embedding, with positions, and every block."""
        found: Any = module
        if isinstance(module, torchvision.models.VisionTransformer):
            embedding, blocks = found.encoder.dropout, found.encoder.layers
        else:
            embedding, blocks = found.norm_pre, found.blocks
        return {"embedding": embedding} | {f"blocks.{index}": block for index, block in enumerate(blocks)}

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        return TORCHVISION if architecture(arch).reference == "torchvision" else TIMM

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norms = (state_dict[name] for name in NORMS if name in state_dict)
        return next((norm.numel() for norm in norms), None)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with such patches, as many blocks, and the last norm in the same place."""
        mean = "fc_norm.weight" in state_dict
        for kernel, block, reference in PLACES:
            if kernel in state_dict and state_dict[kernel].ndim == 4:
                width, _, patch, _ = state_dict[kernel].shape
                depth = len({match[1] for name in state_dict if (match := re.match(block, name))})
                return [
                    name
                    for name, known in ARCHITECTURES.items()
                    if known.family == "vit"
                    and (known.reference, known.width, known.strides) == (reference, width, (patch,) * depth)
                    and name.endswith(MEAN) == mean
                ]
        return []

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Joins queries, keys and values, drops the token of masked patches, and places registers as timm does."""
        tensors, notices = joined(state_dict), []
        if tensors.pop("mask_token", None) is not None:
            notices.append("dropped mask_token, which only pretraining uses")
        if _places_registers(tensors):
            # DINOv2 gives the class token a position and registers none; timm, neither.
            first, rest = tensors["pos_embed"].float().split([1, tensors["pos_embed"].shape[1] - 1], dim=1)
            tensors |= {"cls_token": tensors["cls_token"].float() + first, "pos_embed": rest}
            notices.append("the position embedding of its class token was added to that token, as timm does")
        if arch.endswith(MEAN) and "norm.weight" in tensors and not {"fc_norm.weight", "head.weight"} & tensors.keys():
            # A network with a head, on the other hand, was trained with its norm.
            new = torch.ones_like(tensors.pop("norm.weight"))
            tensors |= {"fc_norm.weight": new, "fc_norm.bias": torch.zeros_like(new)}
            tensors.pop("norm.bias", None)
            notices.append("its last norm was replaced by a new one after the mean, as MAE is fine-tuned")
        return tensors, notices


def _places_registers(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether a network has registers and its first position embedding is the class token's."""
    if not {"reg_token", "cls_token", "pos_embed"} <= state_dict.keys():
        return False
    positions, token = state_dict["pos_embed"], state_dict["cls_token"]
    if positions.ndim != 3 or token.shape != (1, 1, positions.shape[-1]) or not keys.is_plain(positions):
        return False
    patches = positions.shape[1] - 1
    return patches > 0 and math.isqrt(patches) ** 2 == patches
