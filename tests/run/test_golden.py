"""Tests that a run of an earlier version can be loaded, continued and reported on.

tests/golden/run must stay readable until the format of checkpoints changes. Only then is it made again, by
`python tests/run/test_golden.py`.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sft_jax
from sft_jax import data
from sft_jax.config import complete
from sft_jax.models import ARCHITECTURES
from sft_jax.models.resnet import Bottleneck, Variant, architecture
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.trainer import train

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
SMALLEST = Variant(Bottleneck, (1, 0, 0, 0), width_per_group=1)
SETTINGS = {
    "epochs": 2,
    "batch_size": 64,
    "init": "scratch",
    "model.name": "smallest",
    "data.source": "digits:0-4",
    "data.size": 16,
    "data.crop_padding": 1,
    "optimizer.learning_rate": 0.05,
}


def run(folder, *, resume, **changes):
    return train(complete(SETTINGS | changes), Run(folder), resume=resume, console=Console(), command=["golden"])


@pytest.fixture(autouse=True)
def smallest(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "smallest", architecture("smallest", SMALLEST))


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "run")


def test_a_run_of_an_earlier_version_is_loaded():
    """Its test images are classified as before."""
    classifier = sft_jax.load(GOLDEN)
    test = data.load_dataset(complete(SETTINGS).data, seed=0).test
    guesses = classifier.logits(test.images).argmax(-1)
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (test.labels, guesses), 1)
    results = Run(GOLDEN).results()
    np.testing.assert_array_equal(confusion, results["confusion"])
    assert classifier.class_names == tuple(results["class_names"]) == tuple("01234")


def test_a_run_of_an_earlier_version_continues(copy):
    before = Run(copy).rows()
    results = run(copy, resume=True, epochs=3)
    assert Run(copy).rows()[:2] == before
    assert [row["epoch"] for row in Run(copy).rows()] == [1, 2, 3]
    assert results["epochs"] == 3
    assert results["best_val_accuracy"] >= before[-1]["best"]
    assert "notice" not in Run(copy).log_file.read_text().partition("resumed")[2]


def test_a_finished_run_of_an_earlier_version_has_the_same_results(copy):
    """All of its epochs are done, and the results are the same."""
    results, wanted = run(copy, resume=True), Run(GOLDEN).results()
    assert results.keys() == wanted.keys() | {"test_balanced_accuracy", "test_macro_f1"}, "added since that version"
    for name, value in wanted.items():
        assert results[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_a_run_of_an_earlier_version_is_reported_on(copy, monkeypatch, capsys):
    from sft_jax.report.__main__ import main

    monkeypatch.setattr(sys, "argv", ["report", "--workdir", str(copy)])
    main()
    assert f"{Run(GOLDEN).results()['test_accuracy']:.1%}"[:-1] in Run(copy).report_file.read_text()


def make():
    """Writes `GOLDEN`, without plots and the older of its latest checkpoints."""
    ARCHITECTURES["smallest"] = architecture("smallest", SMALLEST)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    os.chdir(GOLDEN.parent)  # so that the log names no folder of this machine
    print(json.dumps(run(Path(GOLDEN.name), resume=False)))
    for name in ("report.html", ".lock"):
        (GOLDEN / name).unlink(missing_ok=True)
    for name in ("tensorboard", "checkpoints/latest/8"):
        shutil.rmtree(GOLDEN / name)
    for note in GOLDEN.rglob("commit_success.txt"):
        note.write_text(note.read_text().replace(str(GOLDEN), GOLDEN.name))


if __name__ == "__main__":
    make()
