"""Tests the comparison of input pipelines: its figures and what it refuses, not the speed."""

import sys

import pytest
from children import json_of
from image_folders import fill, noise_image

from sft_jax.benchmark import input as pipelines
from sft_jax.benchmark.__main__ import main, parse
from sft_jax.errors import UserError


class Replaced:
    """Replaces a `Side`: its epochs take the given milliseconds, one after the other."""

    def __init__(self, **times):
        self.times = times


def test_figures_are_medians_and_ratios():
    ours, theirs = Replaced(first=[900.0, 500, 400], later=[100.0, 50]), Replaced(first=[1000.0], later=[600.0])
    values = pipelines._figures({"": ours, "torch_": theirs}, 150)
    assert (values["first_images_per_s"], values["torch_first_images_per_s"]) == (300, 150)
    assert (values["first_speedup_vs_torch"], values["later_speedup_vs_torch"]) == (2, 8)
    assert pipelines.lines(values)[1:] == [
        "first epoch: 300 images/s, torchvision 150: 2.00 x as fast",
        "later epochs: 2,000 images/s, torchvision 250: 8.00 x as fast",
    ]


@pytest.mark.slow
def test_the_command_times_both_sides(tmp_path):
    for number in range(12):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        noise_image(number, 40, 30).save(tmp_path / "ab"[number % 2] / f"{number}.jpg")
    flags = ["--input", str(tmp_path), "--batch", "4", "--size", "16", "--rounds", "1"]
    report = json_of("sft_jax.benchmark", *flags, "--json")
    assert report["images"] == 12
    for task in ("first", "later"):
        ratio = report[f"{task}_images_per_s"] / report[f"torch_{task}_images_per_s"]
        assert report[f"{task}_speedup_vs_torch"] == pytest.approx(ratio)


def test_the_folder_that_is_made_is_one_of_photographs_size(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "COUNT", 12)
    pipelines.make_folder(tmp_path)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 12
    assert len({path.parent for path in files}) == 10
    assert all(20_000 < path.stat().st_size < 200_000 for path in files)


def test_what_cannot_be_timed_is_refused(tmp_path, monkeypatch, capsys):
    for flag in ("--stock", "--epoch"):
        with pytest.raises(SystemExit):
            parse(["--input", "x", flag])
        assert "--input times no network" in capsys.readouterr().err
    fill(tmp_path, ("a", "b"), 2)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--input", str(tmp_path), "--batch", "8"])
    with pytest.raises(UserError, match="has 4 images, fewer than a batch of 8"):
        main()
    monkeypatch.setattr(pipelines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--input compares with torchvision: pip install torch torchvision"):
        main()
