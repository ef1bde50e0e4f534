"""Runs `python -m sft_jax.fit` on small data with tiny weights: its recipe repeats exactly the same run."""

import re
import sys

import numpy as np
import pytest
from commands import called
from image_folders import fill
from made_run import make_run
from PIL import Image
from table_runs import several
from tiny_runs import assert_same_run, one_device

from sft_jax.config import complete, load_config
from sft_jax.data.dataset import ArraySplit, Dataset, StreamedSplit
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import StoppedError, UserError, run_command
from sft_jax.fit import choices, costs, session
from sft_jax.fit import weights as weights_module
from sft_jax.fit.__main__ import main
from sft_jax.fit.costs import Meter, at_side
from sft_jax.main import main as train
from sft_jax.models.weights import save_weights
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights
from sft_jax.training import trainer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights of the network "tiny" as if they were pretrained."""
    folder, prepared = tmp_path_factory.mktemp("weights"), Preprocess(24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    run = make_run(folder / "run", names=("x", "y"), preprocess=prepared)
    save_weights(folder / "tiny.safetensors", load_run_weights(run.folder))
    return folder / "tiny.safetensors"


@pytest.fixture
def fit(monkeypatch, capsys, tmp_path, weights):
    """Calls the command with the flags; returns the exit code, standard output and standard error."""
    monkeypatch.setattr(weights_module, "row", lambda name: {"top1": None})
    monkeypatch.setattr(choices, "SMALLEST", 16)
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    monkeypatch.setattr(session, "Devices", one_device)
    monkeypatch.setattr(trainer, "Devices", one_device)

    def call(*flags, minutes=10, given=weights):
        named = [] if given is None else ["--weights", given]
        return called(monkeypatch, capsys, main, "fit", *flags, "--minutes", minutes, *named)

    monkeypatch.chdir(tmp_path)
    return call


def flowers(folder, count=40):
    """Two classes of noise that differ in brightness."""
    for index, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng([index, number]).integers(0, 128, (16, 16, 3)) + 127 * index
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


@pytest.mark.long
def test_it_chooses_trains_and_leaves_a_recipe_that_repeats_the_run(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "MOST", 4)
    code, printed, complaints = fit(flowers(tmp_path / "flowers"))
    assert (code, complaints) == (0, "")
    run, recipe = Run(tmp_path / "runs" / "flowers_fit"), tmp_path / "runs" / "flowers_fit" / "recipe.py"
    assert run.results()["test_accuracy"] > 0.8
    assert run.report_file.exists()
    config = load_config(str(recipe))
    assert (config.epochs, config.finetune.method, config.data.size) == (5, "head_then_full", 24)
    assert config.data.source == f"folder:{tmp_path / 'flowers'}"
    assert (config.data.mean, config.data.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), "those of the weights"
    for line in (
        r"notice     no val or test split: using about 10% of the training images of each class",
        r"measured   24 px: [\d.]+ ms to evaluate an image, \d+ ms a training step, [\d.]+ s to compile$",
        r"weights    .*tiny.safetensors \(tiny\): as you say",
        r"method     a fitted head, then everything for 4 epochs \(LP-FT\), .*; more were of no use",
        r"recipe     runs/flowers_fit/recipe.py; if it is stopped: python -m sft_jax.main --config .* --resume",
        r"time       \d:\d\d of 10:00 minutes",
    ):
        assert re.search(f"^{line}", printed, re.MULTILINE), line
    assert run.record()["command"][1:] == ["--config", "runs/flowers_fit/recipe.py", "--workdir", "runs/flowers_fit"]
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(recipe), "--workdir", "again", "--quiet"])
    assert run_command(train) == 0
    assert_same_run(run.folder, tmp_path / "again")


@pytest.mark.slow
def test_several_labels_and_given_settings(fit, tmp_path):
    table = several(tmp_path / "pictures", 60)
    code, printed, complaints = fit(table, "--config.task=multilabel", "--config.batch_size=12", "--workdir", "labels")
    assert (code, complaints) == (0, "")
    config = Run(tmp_path / "labels").config()
    assert (config.task, config.batch_size, config.regularization.label_smoothing) == ("multilabel", 12, 0)
    assert "batch_size=12 as you say" in printed
    assert "with about" not in printed


def test_few_images_per_class_train_the_head(fit, tmp_path):
    code, printed, _ = fit(flowers(tmp_path / "flowers", 20))
    assert code == 0
    assert Run(tmp_path / "runs" / "flowers_fit").config().finetune.method == "head"
    assert "with about 18 images per class, training more was never better" in printed


@pytest.mark.long
def test_of_several_weights_the_better_probe_wins(fit, tmp_path, weights):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "good.safetensors").write_bytes(weights.read_bytes())
    broken = load_run_weights(make_run(tmp_path / "other", names=("x", "y"), seed=1).folder)
    for name in broken.arrays:
        if name.startswith("conv1"):
            broken.arrays[name] = np.zeros_like(broken.arrays[name])
    save_weights(folder / "blind.safetensors", broken)
    code, printed, _ = fit(flowers(tmp_path / "flowers", 20), given=folder, minutes=3)
    assert code == 0
    assert "not compared with" in printed
    code, printed, _ = fit(tmp_path / "flowers", "--workdir", "runs/flowers_fit_2", given=folder)
    assert code == 0
    assert Run(tmp_path / "runs" / "flowers_fit_2").config().init == str(folder / "good.safetensors")
    tried = re.findall(r"^weights    .*/(\w+).safetensors .* (\S+)% of a linear probe at 24 px$", printed, re.MULTILINE)
    assert [name for name, _ in tried] == ["blind", "good", "good"], "both are tried, and the choice is explained"


def test_too_little_time_is_refused_with_the_minimum(fit, tmp_path):
    code, _, complaints = fit(flowers(tmp_path / "flowers"), minutes=0.001)
    assert code == 2
    message = r"error: --minutes 0.001 is too little: .* take about 0:\d\d .*; use --minutes [\d.]+ or more"
    assert re.search(message, complaints)
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_from_random_weights_only_if_asked(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "MOST", 3)
    fill(tmp_path / "flowers", ("ant", "bee"), 30)
    flags = ("--config.init=scratch", "--config.model.name=tiny", "--config.data.size=16")
    code, printed, _ = fit(tmp_path / "flowers", *flags, given=None)
    config = Run(tmp_path / "runs" / "flowers_fit").config()
    assert (code, config.init, config.finetune.method, config.finetune.batch_norm) == (0, "scratch", "full", "train")
    assert "method     everything, from random weights" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["flowers", "--config.epochs=3"], "config.epochs follows from --minutes; set it in the recipe"),
        (["flowers", "--config.data.source=digits"], "PATH already names the data; leave out --config.data.source"),
        (["flowers", "--config.init=x"], "--weights and --config.init both name the weights"),
        (["masks:m", "--config.task=segmentation"], "config.task=segmentation: this command is for whole images"),
        (["text:t", "--config.task=text"], "config.task=text: this command is for whole images, of which it settles"),
        (["nothing"], "there is no folder or table nothing"),
        (
            ["flowers", "--workdir", "done"],
            "done already contains a run; use another --workdir, or continue it",
        ),
    ],
)
def test_wrong_usage_is_one_line(fit, tmp_path, flags, message):
    flowers(tmp_path / "flowers", 5)
    make_run(tmp_path / "done")
    code, _, complaints = fit(*flags)
    assert code == 2
    assert complaints.startswith(f"error: {message}")
    assert complaints.count("\n") == 1


def test_a_stopped_run_says_how_it_goes_on(fit, tmp_path, monkeypatch):
    def stop(config, args):
        raise StoppedError("stopped by SIGTERM after step 7; the state is saved, add --resume to the same command")

    monkeypatch.setattr("sft_jax.main.train", stop)
    code, _, complaints = fit(flowers(tmp_path / "flowers", 20))
    assert code == 4
    assert complaints == (
        "stopped by SIGTERM after step 7; the state is saved, continue with: python -m sft_jax.main "
        "--config runs/flowers_fit/recipe.py --workdir runs/flowers_fit --resume\n"
    )


TINY = {"model.name": "tiny", "init": "scratch", "data.size": 16, "epochs": 2, "data.source": "folder:somewhere"}


def noise_split(count, side=16):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return ArraySplit.of_images(images, np.arange(count, dtype=np.int32) % 2)


@pytest.mark.slow
def test_the_batch_is_the_largest_that_fits(monkeypatch):
    split = noise_split(64)
    devices = one_device()
    meter = Meter(Dataset(split, split, split, ("a", "b")), devices)
    config = complete(TINY | {"batch_size": 32})
    before = meter.evaluation(config)
    needs = {batch: costs.Steps(meter.experiment(complete(TINY | {"batch_size": batch}))).need for batch in (8, 16)}
    between = (needs[8].bytes + needs[16].bytes) // 2
    monkeypatch.setattr(devices, "free_bytes", lambda: between)
    measured, batch = meter.training(config, before)
    assert 8 <= batch < 16
    assert not measured.is_guess
    assert 0 < measured.step < 5
    monkeypatch.setattr(devices, "free_bytes", lambda: 1000)
    with pytest.raises(UserError, match="not even a batch of 1 images of 16 px fits into the 0 MiB of free memory"):
        meter.training(config, before)


def test_images_are_measured_at_other_sizes():
    split = noise_split(3)
    assert at_side(split, 16) is split
    larger = at_side(split, 32)
    np.testing.assert_array_equal(larger.images[:, ::2, 1::2], split.images)
    streamed = StreamedSplit.of_images(lambda row: split.images[row], np.arange(3), split.labels)
    batch = next(at_side(streamed, 32).batches(np.array([[0, 2]])))
    np.testing.assert_array_equal(batch["image"], larger.images[[0, 2]])
