"""Tests the figures that the benchmark reports, not the speed."""

import os
import subprocess
import sys

import pytest
from children import json_of

from sft_jax.benchmark.__main__ import parse
from sft_jax.benchmark.sides import figures, measure, timings
from sft_jax.benchmark.turns import Side
from sft_jax.errors import UserError

ALLOCATOR = ("", "_allocator") if sys.platform.startswith("linux") else ("",)


@pytest.mark.slow
def test_the_command_measures_all_sides():
    report = json_of("sft_jax.benchmark", "--batch", "4", "--rounds", "1", "--json")
    assert (report["arch"], report["batch"], report["size"], report["device"]) == ("resnet18", 4, 32, "1 x cpu")
    for task in ("train", "eval"):
        assert report[f"{task}_ms"] > 0
        assert report[f"{task}_images_per_s"] == pytest.approx(4e3 / report[f"{task}_ms"])
        ratio = report[f"torch_{task}_ms"] / report[f"{task}_ms"]
        assert report[f"{task}_speedup_vs_torch"] == pytest.approx(ratio)
    assert report["precision"] == "float32"
    assert report["rival"].startswith("PyTorch")
    settings = [report[f"torch_{format}{kind}_train_ms"] for format in ("nchw", "channels_last") for kind in ALLOCATOR]
    assert report["torch_train_ms"] == min(settings)
    assert report["train_flops"] > 4 * 30e6, "forward and backward of 4 images"


@pytest.mark.slow
def test_segmentation_is_measured_on_both_sides():
    report = json_of(
        "sft_jax.benchmark", "--arch", "fcn_resnet18", "--batch", "2", "--size", "32", "--rounds", "1", "--json"
    )
    for task in ("train", "eval"):
        assert report[f"{task}_speedup_vs_torch"] == report[f"torch_{task}_ms"] / report[f"{task}_ms"]
    assert report["train_flops"] > 0


def test_pixels_have_no_epochs_and_no_stock_layers():
    with pytest.raises(UserError, match="for classifiers of images, but fcn_resnet18 has outputs of pixels"):
        measure(parse(["--arch", "fcn_resnet18", "--epoch"]))


class Measured:
    """Replaces a `Side` that has run."""

    def __init__(self, facts, times):
        self.facts, self.times = facts, times

    median = Side.median


def test_figures_are_medians_and_ratios():
    ours = Measured(
        {"device": "2 x Tesla T4", "train_flops": 13e12}, {"train": [9.0, 200, 100], "eval": [50.0], "epoch": [4000.0]}
    )
    slow = Measured({}, {"train": [150.0], "eval": [75.0], "epoch": [8000.0]})
    fast = Measured({}, {"train": [160.0], "eval": [25.0], "epoch": [9000.0], "epoch_in_memory": [6000.0]})
    sides = {"": ours, "torch_nchw": slow, "torch_channels_last": fast}
    report = figures(parse(["--batch", "10"]), ours.facts, timings(sides))
    assert report["train_ms"] == 100, "the median"
    assert report["train_images_per_s"] == 100
    assert report["train_speedup_vs_torch"] == 1.5
    assert report["eval_speedup_vs_torch"] == 0.5, "the fastest setting of each task is the rival"
    assert (report["rival"], report["eval_rival"]) == ("PyTorch", "PyTorch, channels_last")
    assert report["eval_speedup_vs_torch_nchw"] == 1.5
    assert (report["epoch_s"], report["torch_epoch_s"], report["epoch_speedup_vs_torch"]) == (4, 6, 1.5)
    assert report["epoch_rival"] == "PyTorch at its best, images in memory"
    assert report["epoch_speedup_vs_torch_channels_last"] == 2.25
    assert report["share_of_peak"] == pytest.approx(130e12 / (2 * 65e12))


def test_a_side_that_dies_is_named(capfd):
    with pytest.raises(UserError, match="jax_side exited early; see its output above"):
        Side("jax_side", ["no_such_network", "4", "32", "float32"], {"XLA_FLAGS": ""})
    said = capfd.readouterr().err
    assert "no_such_network" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("switch", "expected"), [("0", "False"), ("1", "True")])
def test_the_allocator_can_be_switched_off(switch, expected):
    script = "from sft_jax.runtime.allocator import keep_freed_memory; print(keep_freed_memory())"
    changed = os.environ | {"SFT_JAX_MALLOPT": switch}
    done = subprocess.run([sys.executable, "-c", script], env=changed, capture_output=True, text=True, check=True)
    if not sys.platform.startswith("linux"):
        expected = "False"
    assert done.stdout.strip() == expected
