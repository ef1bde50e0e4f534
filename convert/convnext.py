"""ConvNeXts in torch: torchvision's `convnext_*`, timm's `convnextv2_*`.

| torchvision              | timm                      | facebookresearch      | Hugging Face                          |
| ------------------------ | ------------------------- | --------------------- | ------------------------------------- |
| features.0.0             | stem.0                    | downsample_layers.0.0 | embeddings.patch_embeddings           |
| features.0.1             | stem.1                    | downsample_layers.0.1 | embeddings.layernorm                  |
| features.2.*             | stages.1.downsample.*     | downsample_layers.1.* | encoder.stages.1.downsampling_layer.* |
| features.1.0             | stages.0.blocks.0         | stages.0.0            | encoder.stages.0.layers.0             |
| - block.0                | - conv_dw                 | - dwconv              | - dwconv                              |
| - block.2                | - norm                    | - norm                | - layernorm                           |
| - block.3, block.5       | - mlp.fc1, mlp.fc2        | - pwconv1, pwconv2    | - pwconv1, pwconv2                    |
| - layer_scale            | - gamma                   | - gamma               | - layer_scale_parameter               |
|                          | - mlp.grn                 | - grn                 | - grn                                 |
| classifier.0, .2         | head.norm, head.fc        | norm, head            | layernorm, classifier                 |

Some of their tensors have axes of size 1 that others' lack.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
import torchvision

from convert import keys
from convert.names import PREFIX, Dialect
from convert.reference import Reference, Tensors, empty_network
from sft_jax.models import architecture
from sft_jax.models.convnext import VARIANTS, torchvision_path

# Titles of dialects; the path of the first depthwise convolution; names -> timm's.
LIBRARIES = (
    ("timm's", r"stages\.0\.blocks\.0\.conv_dw", ((r"(.+)", r"\1"),)),
    (
        "facebookresearch's",
        r"stages\.0\.0\.dwconv",
        (
            (r"downsample_layers\.0\.(.+)", r"stem.\1"),
            (r"downsample_layers\.(\d)\.(.+)", r"stages.\1.downsample.\2"),
            (r"stages\.(\d)\.(\d+)\.dwconv\.(.+)", r"stages.\1.blocks.\2.conv_dw.\3"),
            (r"stages\.(\d)\.(\d+)\.pwconv([12])\.(.+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
            (r"stages\.(\d)\.(\d+)\.grn\.gamma", r"stages.\1.blocks.\2.mlp.grn.weight"),
            (r"stages\.(\d)\.(\d+)\.grn\.beta", r"stages.\1.blocks.\2.mlp.grn.bias"),
            (r"stages\.(\d)\.(\d+)\.(norm\..+|gamma)", r"stages.\1.blocks.\2.\3"),
            (r"norm\.(.+)", r"head.norm.\1"),
            (r"head\.(weight|bias)", r"head.fc.\1"),
        ),
    ),
    (
        "Hugging Face's",
        r"encoder\.stages\.0\.layers\.0\.dwconv",
        (
            (r"embeddings\.patch_embeddings\.(.+)", r"stem.0.\1"),
            (r"embeddings\.layernorm\.(.+)", r"stem.1.\1"),
            (r"encoder\.stages\.(\d)\.downsampling_layer\.(.+)", r"stages.\1.downsample.\2"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)\.dwconv\.(.+)", r"stages.\1.blocks.\2.conv_dw.\3"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layernorm\.(.+)", r"stages.\1.blocks.\2.norm.\3"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)\.pwconv([12])\.(.+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)\.grn\.(.+)", r"stages.\1.blocks.\2.mlp.grn.\3"),
            (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
            (r"layernorm\.(.+)", r"head.norm.\1"),
        ),
    ),
)
# timm's name of a tensor that torchvision's networks have too: our path of its module, or of its layer scale.
MODULE = re.compile(
    r"(?:stages\.(?P<trunk>\d\.(?:downsample\.[01]|blocks\.\d+\.(?:conv_dw|norm|mlp\.fc[12])))|(?P<stem>stem\.[01])|"
    r"head\.(?P<end>norm|fc))\.(?P<leaf>weight|bias)"
)
LAYER_SCALE = re.compile(r"stages\.(\d)\.blocks\.(\d+)\.gamma")


def _torchvision_name(match: re.Match, replacement: str) -> str:
    """Translates the name that `match` expands to, which is timm's, to torchvision's."""
    name = match.expand(replacement)
    if scale := LAYER_SCALE.fullmatch(name):
        return f"features.{2 * int(scale[1]) + 1}.{scale[2]}.layer_scale"
    module = MODULE.fullmatch(name)
    if module is None:
        return name
    path = f"trunk.{module['trunk']}" if module["trunk"] else module["stem"] or module["end"]
    return f"{torchvision_path(path)}.{module['leaf']}"


class ConvNeXtReference(Reference):
    """See `Reference`."""

    title = "a ConvNeXt"
    landmark = "depthwise convolution under a known name"
    body = ("features.", "classifier.0.", "stem.", "stages.", "head.norm.")

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_network(arch, outputs)
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        own = {name: tensor.reshape(shapes.get(name, tensor.shape)) for name, tensor in state_dict.items()}
        module.load_state_dict(own, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem, every reduction and every block."""
        found: dict[str, torch.nn.Module] = {}
        if isinstance(module, torchvision.models.ConvNeXt):
            found["stem"], *rest = module.features
            reductions, stages = [None, *rest[1::2]], rest[::2]
        else:
            parts: Any = module
            found["stem"] = parts.stem
            reductions, stages = ([getattr(stage, name) for stage in parts.stages] for name in ("downsample", "blocks"))
        for index, (reduction, blocks) in enumerate(zip(reductions, stages, strict=True)):
            if index:
                found[f"trunk.{index}.downsample"] = reduction
            found |= {f"trunk.{index}.blocks.{number}": block for number, block in enumerate(blocks)}
        return found

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`."""
        own = architecture(arch).reference
        found = []
        for title, first, rules in LIBRARIES:
            pattern = re.compile(rf"{PREFIX}{first}\.weight")
            if own == "torchvision":
                renamed = tuple(
                    (pattern, functools.partial(_torchvision_name, replacement=name)) for pattern, name in rules
                )
                found.append(Dialect(title, pattern, renamed))
            else:
                found.append(Dialect(None if title == "timm's" else title, pattern, rules))
        if own == "torchvision":
            found.insert(0, Dialect(None, re.compile(rf"{PREFIX}features\.1\.0\.block\.0\.weight")))
        return tuple(found)

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norms = (state_dict[name] for name in ("classifier.0.bias", "head.norm.bias") if name in state_dict)
        return next((norm.numel() for norm in norms), None)

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks of as many channels."""
        found = {}
        for name, tensor in state_dict.items():
            if match := re.fullmatch(r"features\.(\d)\.(\d+)\.block\.0\.bias", name):
                found[(int(match[1]) - 1) // 2, int(match[2])] = tensor.numel()
            elif match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.bias", name):
                found[int(match[1]), int(match[2])] = tensor.numel()
        return [
            arch
            for arch, variant in VARIANTS.items()
            if found
            == {
                (stage, block): channels
                for stage, (blocks, channels) in enumerate(zip(variant.blocks, variant.channels, strict=True))
                for block in range(blocks)
            }
        ]

    def adapted(self, state_dict: Mapping[str, torch.Tensor], arch: str) -> tuple[Tensors, list[str]]:
        """Adds and removes axes of size 1, as the network's reference has them."""
        variants = [VARIANTS[arch] for arch in self.siblings(state_dict)]
        convolutions = any(variant.as_convolutions for variant in variants)
        tensors = dict(state_dict)
        for name, tensor in state_dict.items():
            if not keys.is_plain(tensor):
                continue
            if name.endswith(".layer_scale") and tensor.ndim == 1:
                tensors[name] = tensor[:, None, None]
            elif re.fullmatch(r".+\.mlp\.grn\.\w+", name) and tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1):
                tensors[name] = tensor[0, 0, 0]
            elif re.fullmatch(r".+\.mlp\.fc[12]\.weight", name):
                if convolutions and tensor.ndim == 2:
                    tensors[name] = tensor[:, :, None, None]
                elif not convolutions and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
                    tensors[name] = tensor[:, :, 0, 0]
        return tensors, []
