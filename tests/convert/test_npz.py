"""The original `.npz` files of vision transformers hold what timm makes of them."""

import re

import ml_dtypes
import numpy as np
import pytest
import torch
from timm.models.vision_transformer import _load_weights
from tiny_vit import CLASSES, build, register

from convert.fit import fit
from convert.sources import read
from sft_jax.errors import UserError

WIDTH, HEADS, DEPTH, PATCHES = 24, 3, 2, 16
ARCH = "tiny_plain"


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        yield


def original(*, big_vision=False):
    """Draws the arrays of a network, under vision_transformer's names or big_vision's."""
    width, d, attention, mlp, norm = WIDTH, WIDTH // HEADS, *((0, 0, 1) if big_vision else (1, 3, 2))
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    shapes = {
        "cls": (1, 1, width),
        positions: (1, 1 + PATCHES, width),
        "embedding/kernel": (4, 4, 3, width),
        "embedding/bias": (width,),
        "head/kernel": (width, CLASSES),
        "head/bias": (CLASSES,),
    }
    norms = ["Transformer/encoder_norm"]
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_{norm}"]
        heads = f"{block}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            shapes |= {f"{heads}/{part}/kernel": (width, HEADS, d), f"{heads}/{part}/bias": (HEADS, d)}
        shapes |= {f"{heads}/out/kernel": (HEADS, d, width), f"{heads}/out/bias": (width,)}
        for name, inputs, outputs in (("Dense_0", width, 4 * width), ("Dense_1", 4 * width, width)):
            dense = f"{block}/MlpBlock_{mlp}/{name}"
            shapes |= {f"{dense}/kernel": (inputs, outputs), f"{dense}/bias": (outputs,)}
    shapes |= {f"{name}/{leaf}": (width,) for name in norms for leaf in ("scale", "bias")}
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def stacked(arrays):
    """Returns the arrays as big_vision saves a network whose blocks are scanned."""
    blocks = {name: array for name, array in arrays.items() if "encoderblock_" in name}
    names = {re.sub(r"_\d+/", "/", name, count=1) for name in blocks}
    each = {
        name: np.stack([blocks[name.replace("block/", f"block_{index}/", 1)] for index in range(DEPTH)])
        for name in names
    }
    return {name: array for name, array in arrays.items() if name not in blocks} | each


def prefixed(prefix, arrays):
    return {f"{prefix}{name}": array for name, array in arrays.items()}


CASES = {
    "vision_transformer": lambda: original(),
    "with an optimiser": lambda: prefixed("opt/target/", original()) | {"opt/state/step": np.int32(3)},
    "big_vision": lambda: prefixed("params/", original(big_vision=True)),
    "big_vision, scanned": lambda: prefixed("params/", stacked(original(big_vision=True))),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_timm_makes_of_it(case, tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **CASES[case]())
    checkpoint = read(path, arch=ARCH)
    found = fit(checkpoint.state_dict, ARCH, "w.npz")
    wanted = build("plain")
    with torch.no_grad():
        _load_weights(wanted, str(path))
    theirs, ours = wanted.state_dict(), found.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert checkpoint.notices[0] == "its keys are vision_transformer's; renamed to timm's"
    assert ("ignored 1 arrays that are not under opt/target/" in checkpoint.notices) == (case == "with an optimiser")
    assert found.classes == CLASSES


def test_bfloat16_is_cast_and_said(tmp_path):
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in original().items()}
    np.savez(tmp_path / "w.npz", **{name: array.view("V2") for name, array in arrays.items()})
    found = fit(read(tmp_path / "w.npz", arch=ARCH).state_dict, ARCH, "w.npz")
    np.testing.assert_array_equal(found.arrays["cls_token"], arrays["cls"].astype(np.float32))
    assert "tensors were cast from bfloat16" in found.notices[0]


def test_a_layer_before_the_head_is_dropped_with_it(tmp_path):
    layer = {"pre_logits/kernel": np.ones((WIDTH, WIDTH), np.float32), "pre_logits/bias": np.ones(WIDTH, np.float32)}
    np.savez(tmp_path / "w.npz", **original(), **layer)
    checkpoint = read(tmp_path / "w.npz", arch=ARCH)
    assert fit(checkpoint.state_dict, ARCH, "w.npz").classes == 0
    assert "is not one linear layer and was dropped" in checkpoint.notices[1]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.ones(3))
    with pytest.raises(UserError, match="is not a vision transformer of vision_transformer or big_vision"):
        read(path, arch=ARCH)
    np.savez_compressed(path, **original() | {"head/kernel": np.zeros((500, 500))})
    with pytest.raises(UserError, match=r"is compressed; load it with numpy and np\.savez it again"):
        read(path, arch=ARCH)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"is damaged or was not written by np\.savez"):
        read(path, arch=ARCH)
    np.savez(path, **original(), **{"MAPHead_0/probe": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="MAPHead_0/probe is unknown"):
        fit(read(path, arch=ARCH).state_dict, ARCH, "w.npz")
    np.savez(path, **original())
    with pytest.raises(UserError, match="a vision transformer, but fits tiny_plain: add --arch tiny_plain"):
        fit(read(path, arch="tiny_torchvision").state_dict, "tiny_torchvision", "w.npz")
