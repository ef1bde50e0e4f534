"""What is published of each network: its pretrained weights with their ImageNet accuracy and licence, and its size.

Weights and licences are those of torchvision 0.29 and timm 1.0.31, whose package does not contain accuracies.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder
from sft_jax.runtime.estimate import flops

# Written by `python -m sft_jax.models.catalogue`, in minutes.
SIZES = Path(__file__).with_name("sizes.json")


class Published(NamedTuple):
    """Pretrained weights of a network.

    Attributes:
      library: where they come from.
      name: their name in torchvision, or the tag after the dot in timm; with the network before the dot if timm has
        another name for it.
      licence: its SPDX identifier, or its name if it has none; None if unknown.
      top1: accuracy on ImageNet's validation images in percent, None if the library does not record it.
    """

    library: str
    name: str
    licence: str | None
    top1: float | None


# torchvision's IMAGENET1K_V1, and V2 if there is one.
_TORCHVISION: dict[str, tuple[float, ...]] = {
    "resnet18": (69.758,), "resnet34": (73.314,), "resnet50": (76.13, 80.858), "resnet101": (77.374, 81.886),
    "resnet152": (78.312, 82.284), "resnext50_32x4d": (77.618, 81.198), "resnext101_32x8d": (79.312, 82.834),
    "resnext101_64x4d": (83.246,), "wide_resnet50_2": (78.468, 81.602), "wide_resnet101_2": (78.848, 82.51),
    "efficientnet_b0": (77.692,), "efficientnet_b1": (78.642, 79.838), "efficientnet_b2": (80.608,),
    "mobilenet_v3_small": (67.668,), "mobilenet_v3_large": (74.042, 75.274),
    "efficientnet_b3": (82.008,), "efficientnet_b4": (83.384,), "efficientnet_b5": (83.444,),
    "efficientnet_b6": (84.008,), "efficientnet_b7": (84.122,), "efficientnet_v2_s": (84.228,),
    "efficientnet_v2_m": (85.112,), "efficientnet_v2_l": (85.808,), "vit_b_16": (81.072,), "vit_b_32": (75.912,),
    "vit_l_16": (79.662,), "vit_l_32": (76.972,), "convnext_tiny": (82.52,), "convnext_small": (83.616,),
    "convnext_base": (84.062,), "convnext_large": (84.414,), "regnet_y_400mf": (74.046, 75.804),
    "regnet_y_800mf": (76.42, 78.828), "regnet_y_1_6gf": (77.95, 80.876), "regnet_y_3_2gf": (78.948, 81.982),
    "regnet_y_8gf": (80.032, 82.828), "regnet_y_16gf": (80.424, 82.886), "regnet_y_32gf": (80.878, 83.368),
    "swin_t": (81.474,), "swin_s": (83.196,), "swin_b": (83.582,), "swin_v2_t": (82.072,), "swin_v2_s": (83.712,),
    "swin_v2_b": (84.112,),
}  # fmt: skip
# torchvision's IMAGENET1K_SWAG_E2E_V1 and IMAGENET1K_SWAG_LINEAR_V1, which are not for commercial use.
_SWAG: dict[str, tuple[float, float]] = {
    "vit_b_16": (85.304, 81.886),
    "vit_l_16": (88.064, 85.146),
    "regnet_y_16gf": (86.012, 83.976),
    "regnet_y_32gf": (86.838, 84.622),
}
_SWIN = ("ms_in1k", "ms_in22k", "ms_in22k_ft_in1k")
_RSB = "a1_in1k a2_in1k a3_in1k"
# timm's tags, without its copies of torchvision's weights; with timm's name of the network where that is another one.
_TIMM: dict[str, str] = {
    "resnet18": f"{_RSB} fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k",
    "resnet34": f"{_RSB} bt_in1k gluon_in1k ra4_e3600_r224_in1k",
    "resnet50": f"{_RSB} a1h_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k c2_in1k d_in1k "
    "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k ram_in1k",
    **dict.fromkeys(("resnet101", "resnet152"), f"{_RSB} a1h_in1k gluon_in1k"),
    "resnext50_32x4d": f"{_RSB} a1h_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k ra_in1k",
    "resnext101_32x8d": "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k fb_wsl_ig1b_ft_in1k",
    "resnext101_64x4d": "c1_in1k gluon_in1k", "wide_resnet50_2": "racm_in1k",
    "resnet18d": "ra2_in1k ra4_e3600_r224_in1k", "resnet34d": "ra2_in1k",
    "resnet50d": f"{_RSB} gluon_in1k ra2_in1k ra4_e3600_r224_in1k",
    **dict.fromkeys(("resnet101d", "resnet152d"), "gluon_in1k ra2_in1k"),
    **{f"tf_efficientnet_b{n}": "aa_in1k ap_in1k in1k ns_jft_in1k" for n in range(5)},
    "tf_efficientnet_b5": "aa_in1k ap_in1k in1k ns_jft_in1k ra_in1k",
    "tf_efficientnet_b6": "aa_in1k ap_in1k ns_jft_in1k",
    "tf_efficientnet_b7": "aa_in1k ap_in1k ns_jft_in1k ra_in1k",
    **{f"tf_efficientnetv2_{size}": "in1k in21k in21k_ft_in1k" for size in "sml"},
    "regnet_y_400mf": "regnety_004.pycls_in1k", "regnet_y_1_6gf": "regnety_016.pycls_in1k",
    "regnet_y_3_2gf": "regnety_032.pycls_in1k regnety_032.ra_in1k",
    "regnet_y_16gf": "regnety_160.deit_in1k regnety_160.lion_in12k_ft_in1k regnety_160.pycls_in1k "
    "regnety_160.sw_in12k regnety_160.sw_in12k_ft_in1k", "regnet_y_32gf": "regnety_320.pycls_in1k",
    "efficientnet_lite0": "ra_in1k", **{f"tf_efficientnet_lite{n}": "in1k" for n in range(5)},
    "mobilenetv3_small_100": "lamb_in1k",
    "mobilenetv3_large_100": "miil_in21k miil_in21k_ft_in1k ra4_e3600_r224_in1k ra_in1k",
    "tf_mobilenetv3_small_100": "in1k", "tf_mobilenetv3_large_100": "in1k",
    "mobilenetv4_conv_small": "e1200_r224_in1k e2400_r224_in1k e3600_r256_in1k",
    "mobilenetv4_conv_medium": "e180_ad_r384_in12k e180_r384_in12k e250_r384_in12k e250_r384_in12k_ft_in1k "
    "e500_r224_in1k e500_r256_in1k",
    **{
        f"swin_{name[0]}": " ".join(f"swin_{name}_patch4_window7_224.{tag}" for tag in _SWIN)
        for name in ("tiny", "small", "base")
    },
    **{f"swin_v2_{name[0]}": f"swinv2_{name}_window8_256.ms_in1k" for name in ("tiny", "small", "base")},
    "vit_tiny_patch16_224": "augreg_in21k augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "augreg_in1k augreg_in21k augreg_in21k_ft_in1k dino",
    "vit_small_patch32_224": "augreg_in21k augreg_in21k_ft_in1k",
    "vit_base_patch8_224": "augreg2_in21k_ft_in1k augreg_in21k augreg_in21k_ft_in1k dino",
    "vit_base_patch16_224": "augreg2_in21k_ft_in1k augreg_in1k augreg_in21k augreg_in21k_ft_in1k bamboo dino mae "
    "orig_in21k orig_in21k_ft_in1k sam_in1k",
    "vit_base_patch32_224": "augreg_in1k augreg_in21k augreg_in21k_ft_in1k orig_in21k sam_in1k",
    "vit_large_patch16_224": "augreg_in21k augreg_in21k_ft_in1k mae orig_in21k",
    **{f"deit_{size}_patch16_224": "fb_in1k" for size in ("tiny", "small", "base")},
    **{f"deit3_{size}_patch16_224": "fb_in1k fb_in22k_ft_in1k" for size in ("small", "base", "large")},
    **{f"vit_{size}_patch14_dinov2": "lvd142m" for size in ("small", "base", "large")},
    **{f"vit_{size}_patch14_reg4_dinov2": "lvd142m" for size in ("small", "base", "large")},
    "vit_small_patch16_dinov3": "lvd1689m", "vit_small_patch16_dinov3_qkvb": "eupe_lvd1689m lvd1689m",
    "vit_base_patch16_dinov3": "lvd1689m", "vit_base_patch16_dinov3_qkvb": "eupe_lvd1689m lvd1689m",
    **dict.fromkeys(("vit_large_patch16_dinov3", "vit_large_patch16_dinov3_qkvb"), "lvd1689m sat493m"),
    "convnextv2_atto": "fcmae fcmae_ft_in1k",
    **dict.fromkeys(
        ("convnextv2_nano", "convnextv2_tiny", "convnextv2_base"),
        "fcmae fcmae_ft_in1k fcmae_ft_in22k_in1k fcmae_ft_in22k_in1k_384",
    ),
}  # fmt: skip
# From the model card of EfficientNet-Lite, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
_TOP1 = {("tf_efficientnet_lite0", "in1k"): 74.8}


def published(name: str) -> tuple[Published, ...]:
    """Returns the pretrained weights of a network, the usual ones first; none if there are none or it is unknown."""
    theirs = [
        Published("torchvision", f"IMAGENET1K_V{number}", "BSD-3-Clause", top1)
        for number, top1 in enumerate(_TORCHVISION.get(name, ()), start=1)
    ]
    swag = zip(("E2E", "LINEAR"), _SWAG.get(name, ()), strict=False)
    theirs += [Published("torchvision", f"IMAGENET1K_SWAG_{kind}_V1", "CC-BY-NC-4.0", top1) for kind, top1 in swag]
    # A network with mean pooling takes the same weights.
    tags = _TIMM.get(name.removesuffix("_avg"), "").split()
    theirs += [Published("timm", tag, _timm_licence(tag), _TOP1.get((name, tag))) for tag in tags]
    if name in _HUB:
        owner = _HUB[name].partition("/")[0]
        theirs.append(Published("Hugging Face", _HUB[name], _LICENCES.get(owner, "Apache-2.0"), None))
    return tuple(theirs)


# Licences of repositories of the Hugging Face hub, by owner; Apache-2.0 of all others. NVIDIA's is of SegFormer alone,
# https://github.com/NVlabs/SegFormer/blob/master/LICENSE, not for commercial use.
_LICENCES = {"FacebookAI": "MIT", "nvidia": "NVIDIA-SegFormer"}
_HUB = {
    **{f"mit_b{size}": f"nvidia/mit-b{size}" for size in range(6)},
    "bert_tiny_uncased": "google/bert_uncased_L-2_H-128_A-2", "bert_mini_uncased": "google/bert_uncased_L-4_H-256_A-4",
    "bert_small_uncased": "google/bert_uncased_L-4_H-512_A-8",
    "bert_medium_uncased": "google/bert_uncased_L-8_H-512_A-8",
    **{
        f"bert_{name}": f"google-bert/bert-{name.replace('_', '-')}"
        for name in ("base_uncased", "base_cased", "base_multilingual_cased", "large_uncased", "large_cased")
    },
    "roberta_base": "FacebookAI/roberta-base", "roberta_large": "FacebookAI/roberta-large",
    "xlm_roberta_base": "FacebookAI/xlm-roberta-base", "distilroberta_base": "distilbert/distilroberta-base",
    **{
        f"distilbert_{name}": f"distilbert/distilbert-{name.replace('_', '-')}"
        for name in ("base_uncased", "base_cased", "base_multilingual_cased")
    },
    "modernbert_base": "answerdotai/ModernBERT-base", "modernbert_large": "answerdotai/ModernBERT-large",
    "all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2",
    "all_minilm_l12_v2": "sentence-transformers/all-MiniLM-L12-v2",
}  # fmt: skip


# Beginnings of the tags of weights that are not for commercial use.
NON_COMMERCIAL = ("mae", "fcmae", "fb_ssl", "fb_swsl", "fb_wsl")


def _timm_licence(tag: str) -> str | None:
    if tag == "bamboo":
        return None
    if tag in ("lvd1689m", "sat493m"):
        return "DINOv3"
    if tag == "eupe_lvd1689m":
        return "FAIR-Noncommercial"
    if ".pycls_" in tag or ".ms_" in tag:
        return "MIT"
    return "CC-BY-NC-4.0" if tag.startswith(NON_COMMERCIAL) else "Apache-2.0"


def measured(name: str) -> dict[str, Any]:
    """Counts the parameters of a network with 1,000 classes, and its operations for one input of the usual size."""
    architecture = ARCHITECTURES[name]
    network = Network.abstract(Builder(architecture, 1000))

    def logits(params, batch_stats, *inputs):
        return network.apply(params, batch_stats, *inputs, train=False)[0]

    parameters = sum(leaf.size for leaf in network.params.values())
    operations = flops(logits, network.params, network.batch_stats, *architecture.example(1))
    return {"parameters": parameters, "flops": operations}


@functools.cache
def sizes() -> dict[str, dict[str, Any]]:
    """Returns `measured` of every network, as recorded in `SIZES`."""
    return json.loads(SIZES.read_text())


def measure_all() -> None:
    """Measures every network and writes `SIZES`."""
    lines = [f'  "{name}": {json.dumps(measured(name))}' for name in ARCHITECTURES]
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def row(name: str) -> dict[str, Any]:
    """Returns what `python -m sft_jax.models --json` prints of a network."""
    architecture, weights = ARCHITECTURES[name], published(name)
    known = [entry.top1 for entry in weights if entry.top1 is not None]
    return {
        "name": name,
        **sizes()[name],
        "size": architecture.example(1)[0].shape[1],
        "top1": max(known, default=None),
        "licence": " or ".join(dict.fromkeys(entry.licence or "unknown" for entry in weights)) or None,
        "references": [f"{entry.library}: {entry.name}" for entry in weights],
    }


if __name__ == "__main__":
    measure_all()
