"""Tests that the list of networks agrees with torchvision, timm and the networks themselves."""

import json
import sys

import pytest
import timm
import torchvision

from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, __main__, catalogue
from sft_jax.models.catalogue import measured, published, row, sizes

LICENCES = {
    "dinov3-license": "DINOv3",
    "fair-noncommercial-research-license": "FAIR-Noncommercial",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "apache-2.0": "Apache-2.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "": None,
    None: None,
}


@pytest.fixture(autouse=True)
def without_tiny(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "tiny", raising=False)


@pytest.mark.parametrize(
    "name", [name for name, known in ARCHITECTURES.items() if known.reference == "torchvision" and name != "tiny"]
)
def test_weights_of_torchvision_agree(name):
    theirs = torchvision.models.get_model_weights(name)
    wanted = {
        weights.name: (
            "CC-BY-NC-4.0" if "SWAG" in weights.meta.get("license", "") else "BSD-3-Clause",
            weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        )
        for weights in theirs
    }
    found = [entry for entry in published(name) if entry.library == "torchvision"]
    assert {entry.name: (entry.licence, entry.top1) for entry in found} == wanted
    pretrained, transforms = ARCHITECTURES[name].pretrained, theirs["IMAGENET1K_V1"].transforms()
    assert [pretrained.size, pretrained.resize] == [*transforms.crop_size, *transforms.resize_size]
    assert pretrained.interpolation == transforms.interpolation.value
    assert [*pretrained.mean, *pretrained.std] == [*transforms.mean, *transforms.std]


def test_weights_of_timm_agree():
    known: dict[str, dict[str, str | None]] = {}
    for model in timm.list_models(pretrained=True):
        name, _, tag = model.partition(".")
        known.setdefault(name, {})[tag] = LICENCES.get(timm.get_pretrained_cfg(model).license, "other")
    for name, architecture in ARCHITECTURES.items():
        licences = {entry.name: entry.licence for entry in published(name) if entry.library == "timm"}
        wanted = known.get(name.removesuffix("_avg"), {})
        if architecture.reference == "torchvision":
            if name not in catalogue._TIMM:
                assert not licences
                continue
            if not wanted:  # timm has another name for it
                for other, licence in licences.items():
                    model, _, tag = other.partition(".")
                    assert known[model][tag] == licence, other
                continue
            wanted = {tag: licence for tag, licence in wanted.items() if tag not in ("tv_in1k", "tv2_in1k")}
        assert licences == wanted, name


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_sizes_agree_with_the_networks(name):
    assert sizes()[name] == measured(name)


def test_every_network_was_measured():
    assert list(sizes()) == list(ARCHITECTURES), "run: python -m sft_jax.models.catalogue"


def test_the_command_lists_networks(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models", "tf_efficientnet_lite0", "wide_resnet50_2"])
    __main__.main()
    _, lite, resnet = capsys.readouterr().out.splitlines()
    assert lite.split()[:6] == ["tf_efficientnet_lite0", "4.7", "M", "0.8", "224", "74.8"]
    wanted = "81.6  BSD-3-Clause or Apache-2.0; torchvision: IMAGENET1K_V1, IMAGENET1K_V2; timm: racm_in1k"
    assert resnet.endswith(wanted)
    monkeypatch.setattr(sys, "argv", ["models", "--json"])
    __main__.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in rows] == list(ARCHITECTURES)
    assert rows[0] == row("resnet18")
    assert rows[0].keys() == {"name", "parameters", "flops", "size", "top1", "licence", "references"}


def test_an_unknown_network_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models", "resnet19"])
    with pytest.raises(UserError, match="unknown network 'resnet19'; did you mean 'resnet1[08]"):
        __main__.main()


def test_published_weights_have_a_network():
    assert set(catalogue._TIMM) | set(catalogue._TORCHVISION) <= set(ARCHITECTURES)
