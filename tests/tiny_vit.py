"""Tiny vision transformers in torch and in our architectures, for tests."""

import timm.models
import torch
import torchvision

from sft_jax.models import ARCHITECTURES, vit
from sft_jax.models.vit import Variant

CLASSES, SIZE = 5, 16
PLAIN = Variant(patch=4, width=24, depth=2, heads=3)
# Our variant, and the equivalent arguments of timm's class.
VARIANTS = {
    "plain": (PLAIN, {}),
    "plain_avg": (Variant(4, 24, 2, 3, pool="mean"), {"global_pool": "avg"}),
    "deit3": (Variant(4, 24, 2, 3, layer_scale=1e-6, class_position=False), {"init_values": 1, "no_embed_class": True}),
    "dinov2": (Variant(4, 24, 2, 3, layer_scale=1e-5), {"init_values": 1}),
    "registers": (
        Variant(4, 24, 2, 3, layer_scale=1e-5, class_position=False, registers=4),
        {"init_values": 1, "no_embed_class": True, "reg_tokens": 4},
    ),
}


def architecture(name):
    """Returns our architecture of a network of `VARIANTS`, or of torchvision's: "torchvision"."""
    if name == "torchvision":
        return vit.torchvision("tiny_torchvision", PLAIN)
    return vit.timm(f"tiny_{name}", VARIANTS[name][0], vit._pretrained(SIZE, SIZE), "somebody")


def build(name, *, num_classes=CLASSES, img_size=SIZE, **changes):
    """Returns the reference's network."""
    if name == "torchvision":
        shape = {"image_size": img_size, "patch_size": 4, "num_layers": 2, "num_heads": 3}
        return torchvision.models.VisionTransformer(**shape, hidden_dim=24, mlp_dim=96, num_classes=num_classes)
    shape = {"img_size": img_size, "patch_size": 4, "depth": 2, "num_heads": 3, "embed_dim": 24}
    return timm.models.VisionTransformer(**shape, num_classes=num_classes, **VARIANTS[name][1], **changes)


def moved(module):
    """Moves all parameters as far from their initial values as training does; returns the module for evaluation."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def register(patch):
    """Registers the networks as tiny_plain, tiny_plain_avg, ... for the duration of a MonkeyPatch."""
    for name in (*VARIANTS, "torchvision"):
        patch.setitem(ARCHITECTURES, f"tiny_{name}", architecture(name))
    patch.setattr(timm, "create_model", lambda arch, **settings: build(arch.removeprefix("tiny_"), **settings))
    patch.setitem(torchvision.models._api.BUILTIN_MODELS, "tiny_torchvision", _builder)


def _builder(*, weights: torchvision.models.ViT_B_16_Weights | None, num_classes, image_size):
    """Builds the network for `torchvision.models.get_model`, which looks up the weights by the annotation."""
    assert weights is None
    return build("torchvision", num_classes=num_classes, img_size=image_size)
