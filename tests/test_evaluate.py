"""Tests that `python -m sft_jax.evaluate` gives the metrics of a run, for every split."""

import json
import shutil
import sys

import pytest
from commands import called
from image_folders import fill
from made_run import NAMES, make_run
from tiny_runs import TINY

from sft_jax.config import complete
from sft_jax.evaluate import main
from sft_jax.run.folder import Run


@pytest.fixture(scope="module")
def run(whole, tmp_path_factory):
    return Run(shutil.copytree(whole[0], tmp_path_factory.mktemp("runs") / "digits"))


def call(monkeypatch, capsys, run, *flags):
    """Runs the command; returns exit code, standard output and standard error."""
    return called(monkeypatch, capsys, main, "evaluate", "--workdir", run.folder, *flags)


def rows(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_the_test_split_gives_the_results_of_the_run(run, monkeypatch, capsys):
    before = run.results_file.read_bytes()
    code, printed, complaints = call(monkeypatch, capsys, run, "--json")
    assert (code, complaints) == (0, "")
    assert json.loads(printed) == json.loads(before)
    assert run.results_file.read_bytes() == before
    assert json.loads((run.folder / "evaluations" / "test_best.json").read_text()) == json.loads(before)


def test_the_latest_checkpoint_gives_the_metrics_of_the_last_epoch(run, monkeypatch, capsys):
    code, printed, _ = call(monkeypatch, capsys, run, "--split", "validation", "--checkpoint", "latest", "--json")
    results, last = json.loads(printed), rows(run)[-1]
    assert code == 0
    assert (results["test_accuracy"], results["test_loss"]) == (last["val_accuracy"], pytest.approx(last["val_loss"]))
    assert results["test_count"] == 61


def test_the_training_images_can_be_evaluated(run, monkeypatch, capsys):
    code, printed, _ = call(monkeypatch, capsys, run, "--split", "train")
    assert code == 0
    assert f"best checkpoint of {run.folder}, train: accuracy " in printed
    assert "on 320 images" in printed
    assert json.loads((run.folder / "evaluations" / "train_best.json").read_text())["test_count"] == 320


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "train[:5]"], "--split 'train[:5]' must be train, validation or test for a run on digits:0-4"),
        (
            ["--config.data.size=8"],
            "config.data.size cannot be changed for evaluation; only data.source, data.dir, data.download",
        ),
        (["--config.data.source=digits:5-9"], "the classes of digits:5-9 differ from those of "),
        (["--config.data.download=maybe"], "config.data.download='maybe' is not true or false"),
        (["--workdir", "nowhere"], "nowhere contains no run: it has no config.json"),
    ],
)
def test_wrong_usage_is_a_one_line_error(run, monkeypatch, capsys, flags, message):
    code, printed, complaints = call(monkeypatch, capsys, run, *flags)
    assert (code, printed) == (2, "")
    assert complaints.startswith(f"error: {message}")
    assert complaints.count("\n") == 1


def test_only_the_requested_split_is_decoded(tmp_path, monkeypatch, capsys):
    """In a large folder, reading the training images takes the most time."""
    for part in ("train", "val", "test"):
        fill(tmp_path / part, NAMES, 2)
    broken = tmp_path / "train" / "bee" / "001.png"
    broken.write_bytes(broken.read_bytes()[:100])
    run = make_run(tmp_path / "run", data__source=f"folder:{tmp_path}", batch_size=8)
    code, printed, complaints = call(monkeypatch, capsys, run, "--json")
    assert (code, complaints) == (0, "")
    assert json.loads(printed)["test_count"] == 2 * len(NAMES)
    code, _, complaints = call(monkeypatch, capsys, run, "--split", "train")
    assert (code, complaints) == (2, f"error: {broken} cannot be read (image file is truncated); repair or remove it\n")


def test_a_batch_may_not_divide_over_the_devices(run, tmp_path, monkeypatch, capsys):
    """Evaluates on other devices than the run was trained on."""
    record = json.loads(run.config_file.read_text())
    record["config"]["batch_size"] = 60
    del record["digest"]
    moved = Run(tmp_path / "moved")
    moved.folder.mkdir()
    moved.config_file.write_text(json.dumps(record))
    (moved.folder / "checkpoints").symlink_to(run.folder / "checkpoints")
    code, printed, _ = call(monkeypatch, capsys, moved, "--json")
    assert code == 0
    assert json.loads(printed)["confusion"] == json.loads(run.results_file.read_text())["confusion"]


def test_a_run_without_a_finished_epoch_is_refused(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path)
    run.write_config(complete(TINY))
    code, _, complaints = call(monkeypatch, capsys, run)
    assert code == 2
    assert complaints == (
        f"error: {tmp_path} has no latest checkpoint yet because its first epoch is not finished; "
        "continue the run with --resume\n"
    )


def test_help_lists_flags_and_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--workdir", "--split", "--checkpoint", "--json", "data.dir", "python -m sft_jax.evaluate --workdir"):
        assert flag in text
