"""Tests of class names and preprocessing from the files that transformers and timm write beside weights."""

import json

import pytest
import timm
import transformers
from timm.models._hub import save_config_for_hf

from convert import facts
from convert.facts import Facts
from convert.sidecar import beside
from sft_jax.errors import UserError

NORMAL = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def test_without_these_files_nothing_is_known(file):
    assert beside(file, "resnet18") == Facts(None, None)
    file.with_name("config.json").write_text("[1")
    assert beside(file, "resnet18") == Facts(None, None)
    file.with_name("config.json").write_text('{"seed": 0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}')
    assert beside(file, "resnet18") == Facts(None, None)


def test_the_config_of_timm_is_read(file):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    save_config_for_hf(model, file.with_name("config.json"), model_config={"label_names": ["ant", "bee"]})
    names, preprocess, notices, licence, _ = beside(file, "tf_efficientnet_lite0")
    assert licence == "Apache-2.0"
    assert names == ("ant", "bee")
    half = [0.5, 0.5, 0.5]
    assert preprocess == {
        "size": 224, "resize": 256, "interpolation": "bicubic", "fit": "crop", "mean": half, "std": half
    }  # fmt: skip
    assert notices == ("class names and preprocessing from config.json beside it",)
    with pytest.raises(UserError, match=r"contains a tf_efficientnet_lite0, as config\.json beside it says"):
        beside(file, "efficientnet_lite0")


def test_the_test_size_of_timm_is_used(file):
    config = {"input_size": [3, 192, 192], "test_input_size": [3, 224, 224], "crop_pct": 0.875, "test_crop_pct": 0.95}
    config |= {"interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}
    file.with_name("config.json").write_text(json.dumps({"architecture": "efficientnet_b0", "pretrained_cfg": config}))
    preprocess = beside(file, "efficientnet_b0").preprocess
    assert (preprocess["size"], preprocess["resize"]) == (224, 235)


PROCESSORS = {
    "vit": (transformers.ViTImageProcessor, {}, (224, 224, "bilinear", "squash")),
    "convnext": (
        transformers.ConvNextImageProcessor,
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
        (224, 256, "bicubic", "crop"),
    ),
    "large convnext": (
        transformers.ConvNextImageProcessor,
        {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3},
        (384, 384, "bicubic", "squash"),
    ),
    "dinov2": (
        transformers.BitImageProcessor,
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
        (224, 256, "bicubic", "crop"),
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_the_preprocessor_config_of_transformers_is_read(case, file):
    processor, settings, wanted = PROCESSORS[case]
    processor(**settings, **NORMAL).save_pretrained(file.parent)
    file.with_name("config.json").write_text(json.dumps({"id2label": {"1": "bee", "0": "ant"}}))
    names, preprocess, notices, *_ = beside(file, "vit_base_patch16_224")
    assert names == ("ant", "bee")
    assert tuple(preprocess[key] for key in ("size", "resize", "interpolation", "fit")) == wanted
    assert preprocess["mean"] == [0.5, 0.5, 0.5]
    assert notices == ("class names and preprocessing from preprocessor_config.json beside it",)


@pytest.mark.parametrize(
    ("tag", "recorded", "licence"),
    [("fb_swsl_ig1b_ft_in1k", None, "CC-BY-NC-4.0"), ("mine", "mit", "mit"), ("mine", None, None), (None, 3, None)],
)
def test_the_licence_of_timm_is_found_by_its_tag_or_as_recorded(tag, recorded, licence, file):
    cfg = {"architecture": "resnet18", "pretrained_cfg": {"tag": tag, "license": recorded}}
    file.with_name("config.json").write_text(json.dumps(cfg))
    assert beside(file, "resnet18").licence == licence


def test_facts_of_the_file_itself_take_precedence():
    own, other = Facts(("a",), None, ("own",)), Facts(("b",), {"size": 1}, ("other",))
    assert facts.filled(own, other) == Facts(("a",), {"size": 1}, ("own", "other"))
    assert facts.filled(Facts(("a",), {"size": 2}, ("own",)), other).notices == ("own",)
    licensed = facts.filled(own, other._replace(licence="MIT"))
    assert licensed.licence == "MIT"
    assert facts.filled(own._replace(licence="BSD-3-Clause"), licensed).licence == "BSD-3-Clause"
