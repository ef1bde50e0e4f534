"""EfficientNets in torch: torchvision's `efficientnet_b*` and `efficientnet_v2_*`, timm's for all others.

Files of timm and of lukemelas' EfficientNet-PyTorch and its derivatives have these names:

| torchvision              | timm                  | lukemelas (blocks are numbered through)     |
| ------------------------ | --------------------- | ------------------------------------------- |
| features.0.0, .1         | conv_stem, bn1        | _conv_stem, _bn0                            |
| features.2.1.block.0.0   | blocks.1.1.conv_pw    | _blocks.2._expand_conv                      |
| features.2.1.block.1.0   | blocks.1.1.conv_dw    | _blocks.2._depthwise_conv                   |
| features.2.1.block.2.fc1 | blocks.1.1.se.conv_reduce | _blocks.2._se_reduce                    |
| features.2.1.block.3.0   | blocks.1.1.conv_pwl   | _blocks.2._project_conv                     |
| classifier.1             | classifier            | _fc                                         |

The same names do not mean the same network: weights from TensorFlow need its padding and epsilon, which the networks
called `tf_` have. All of lukemelas' files are such weights; of timm's, those of its `tf_` networks.
"""

import functools
import re
from collections.abc import Mapping

import torch
import torchvision

from convert.names import PREFIX, Dialect
from convert.reference import Reference, empty_network
from sft_jax.models import architecture
from sft_jax.models.efficientnet import VARIANTS, Variant, torchvision_path

_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _timm_name(match: re.Match, variant: Variant) -> str:
    """Translates one of lukemelas' names to timm's."""
    if match["block"] is None:
        return f"{_ENDS[match['module']]}.{match['leaf']}"
    stage, index = 0, int(match["block"])
    while stage + 1 < len(variant.stages) and index >= variant.stages[stage].blocks:
        index -= variant.stages[stage].blocks
        stage += 1
    modules = (_SEPARABLE if variant.stages[stage].kind == "separable" else _INVERTED) | _SQUEEZE
    return f"blocks.{stage}.{index}.{modules.get(match['module'], match['module'])}.{match['leaf']}"


def _torchvision_name(match: re.Match, variant: Variant) -> str:
    """Translates one of timm's names to torchvision's."""
    return f"{torchvision_path(match['path'], tuple(stage.kind for stage in variant.stages))}.{match['leaf']}"


class EfficientNetReference(Reference):
    """See `Reference`."""

    title = "an EfficientNet of this kind"
    landmark = "first block under a known name"
    body = ("features.", "conv_stem.", "bn1.", "blocks.", "conv_head.", "bn2.")

    def module(self, arch: str, outputs: int, state_dict: Mapping[str, torch.Tensor], stem: str) -> torch.nn.Module:
        """See `Reference`."""
        module = empty_network(arch, outputs)
        module.load_state_dict(state_dict, strict=True, assign=True)
        return module.eval()

    def stages(self, module: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """Returns the stem, every block and the last convolution, each with its normalisation and activation."""
        if isinstance(module, torchvision.models.EfficientNet):
            stem, *stages, head = module.features
        else:
            stem, stages, head = module.bn1, module.blocks, module.bn2
        blocks = {
            f"blocks.{stage}.{index}": block for stage, row in enumerate(stages) for index, block in enumerate(row)
        }
        return {"stem": stem} | blocks | {"head": head}

    def dialects(self, arch: str) -> tuple[Dialect, ...]:
        """See `Reference`; lukemelas' names are known for networks with TensorFlow's padding alone."""
        variant = VARIANTS[arch]
        timm = re.compile(PREFIX + r"blocks\.0\.0\.(conv_dw|conv)\.weight")
        if architecture(arch).reference == "torchvision":
            own = Dialect(None, re.compile(PREFIX + r"features\.1\.0\.block\.0\.0\.weight"))
            rename = functools.partial(_torchvision_name, variant=variant)
            pattern = r"(?P<path>(?:blocks\.\d+\.\d+\.[\w.]+|conv_stem|bn1|conv_head|bn2|classifier))\.(?P<leaf>\w+)"
            return own, Dialect("timm's", timm, ((pattern, rename),))
        dialects = (Dialect(None, timm),)
        if not variant.style.same_padding:
            return dialects
        pattern = r"(?:_blocks\.(?P<block>\d+)\.)?(?P<module>_\w+)\.(?P<leaf>\w+)"
        rename = functools.partial(_timm_name, variant=variant)
        first = re.compile(PREFIX + r"_blocks\.0\._depthwise_conv\.weight")
        return *dialects, Dialect("EfficientNet-PyTorch's", first, ((pattern, rename),))

    def width(self, state_dict: Mapping[str, torch.Tensor]) -> int | None:
        """See `Reference`."""
        norms = [name for name in state_dict if re.fullmatch(r"(bn2|features\.\d+\.1)\.bias", name)]
        return state_dict[max(norms, key=lambda name: len(state_dict[name]))].numel() if norms else None

    def siblings(self, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
        """Returns the networks with as many blocks in each stage."""
        found: dict[int, set[str]] = {}
        for name in state_dict:
            if match := re.match(r"(blocks|features)\.(\d+)\.(\d+)\.(?=[a-z])", name):
                found.setdefault(int(match[2]) - (match[1] == "features"), set()).add(match[3])
        counts = tuple(len(found[stage]) for stage in sorted(found))
        return [arch for arch, variant in VARIANTS.items() if tuple(stage.blocks for stage in variant.stages) == counts]
