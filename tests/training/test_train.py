"""Tests of the training loop, its files and interruptions, on a ResNet with one block per stage and digits."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from tiny_runs import TINY, StopAt, assert_same_run, rows_of, run, state_of

from sft_jax.config import complete
from sft_jax.data.loader import StepsPerCall
from sft_jax.errors import DivergedError, StoppedError, UserError
from sft_jax.models.weights import save_weights
from sft_jax.run import pace
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights
from sft_jax.training import trainer as train_module
from sft_jax.training.compare import train_and_compare

METRICS = (
    "epoch step learning_rate train_loss train_accuracy val_loss val_accuracy val_balanced_accuracy val_macro_f1 "
    "best train_images_per_s epoch_s"
)
RESULTS = (
    "test_accuracy test_top5 test_loss test_count best_epoch best_val_accuracy class_names per_class_accuracy "
    "confusion ece epochs steps seconds test_balanced_accuracy test_macro_f1"
)


def test_the_files_of_a_finished_run(whole):
    folder, results = whole
    assert json.loads((folder / "results.json").read_text()) == results
    assert set(RESULTS.split()) == results.keys()
    assert results["test_count"] == 61 == np.sum(results["confusion"])
    assert results["epochs"] == 2
    assert results["steps"] == 10
    assert results["class_names"] == list("01234")
    rows = rows_of(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [5, 10]
    assert all(list(row) == METRICS.split() for row in rows)
    assert results["best_val_accuracy"] == max(row["val_accuracy"] for row in rows) == rows[-1]["best"]
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["optimizer"]["momentum"] == 0.9
    assert {"jax", "flax", "optax", "orbax-checkpoint", "sft-jax"} == record["versions"].keys()
    assert record["command"] == ["test"]
    assert record["devices"] == "8 x cpu"
    log = (folder / "train.log").read_text()
    assert "epoch 2/2  loss " in log
    assert f"test accuracy {results['test_accuracy']:.2%} on 61 images" in log
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"latest", "best"}


def test_a_run_learns(tmp_path):
    results = run(tmp_path / "run", epochs=6, limit_train_examples=None)
    assert results["test_accuracy"] > 0.8, "five classes: 0.2 is chance"


@pytest.mark.parametrize(
    ("calls", "step"),
    [
        (1, 1),
        (3, 3),
        (5, 5),
        pytest.param(6, 5, id="validation"),
        (8, 7),
        pytest.param(12, 10, id="last validation"),
        pytest.param(13, 10, id="test"),
    ],
)
def test_a_stopped_run_resumes_bit_identically(whole, tmp_path, monkeypatch, calls, step):
    folder = tmp_path / "run"
    monkeypatch.setattr(train_module, "StepsPerCall", lambda: StepsPerCall(seconds=0))  # one step per call
    monkeypatch.setattr(train_module, "StopRequest", lambda: StopAt(calls))
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM after step {step}; the state is saved, add --resume"):
        run(folder)
    assert not Run(folder).results_file.exists()
    monkeypatch.undo()
    results = run(folder, resume=True)
    assert_same_run(folder, whole[0])
    assert results | {"seconds": 0} == whole[1] | {"seconds": 0}


@pytest.mark.long
def test_a_finished_run_resumes_with_more_epochs(whole, tmp_path, capsys):
    """config.json is updated, and the previous one is kept."""
    folder = tmp_path / "run"
    run(folder, epochs=1)
    before = Run(folder).config_file.read_text()
    capsys.readouterr()
    run(folder, resume=True)
    assert_same_run(folder, whole[0])
    assert Run(folder).config() == Run(whole[0]).config()
    assert (folder / "config.1.json").read_text() == before
    printed = capsys.readouterr().out
    assert (
        "changed    epochs from 1 to 2\n"
        "           learning rate (optimizer.schedule=constant): 0.02 at the last step, 0.02 at the next, 0.02 at the "
        "end\n"
        f"           {folder}/config.json is updated; the old one is kept as config.1.json\n"
    ) in printed
    assert "changed    epochs from 1 to 2" in (folder / "train.log").read_text()
    run(folder, resume=True)
    assert "changed" not in capsys.readouterr().out
    assert not (folder / "config.2.json").exists()


@pytest.mark.long
def test_a_save_within_an_epoch_changes_nothing(whole, tmp_path):
    folder = tmp_path / "run"
    run(folder, save_minutes=1e-9)
    assert_same_run(folder, whole[0])


def test_resuming_an_empty_folder_starts_a_new_run_with_a_notice(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    run(folder, resume=True)
    assert f"nothing to resume in {folder}; starting a new run" in capsys.readouterr().out
    assert_same_run(folder, whole[0])


def test_a_used_folder_is_refused(whole):
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(
        UserError, match="already contains a run; add --resume to continue it, or use another --workdir"
    ):
        run(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_resuming_with_another_config_is_refused(whole):
    with pytest.raises(UserError, match=r"changed: optimizer\.learning_rate \(was 0\.02, now 0\.5\)"):
        run(whole[0], resume=True, optimizer__learning_rate=0.5)


def test_an_indivisible_batch_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="batch_size=60 does not divide evenly over 8 devices; .*=56 or 64"):
        run(tmp_path / "run", batch_size=60)
    assert not (tmp_path / "run").exists()


def test_a_diverging_loss_stops_the_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"at step \d+ \(epoch \d\); earlier checkpoints are in"):
        run(folder, optimizer__learning_rate=3e38)
    saved = Run(folder).checkpoints.restore("latest")
    if saved is not None:
        assert all(np.isfinite(array).all() for array in saved.arrays.values())


@pytest.mark.long
def test_the_checkpoints_of_a_diverged_run_are_kept(tmp_path):
    folder = tmp_path / "run"
    run(folder, epochs=1)
    before = state_of(folder)
    poisoned = {key: np.full_like(a, np.nan) if key == "params/fc.bias" else a for key, a in before.arrays.items()}
    Run(folder).checkpoints.save("latest", before.step + 1, poisoned, before.metadata)
    with pytest.raises(DivergedError, match="the loss is nan at step 6"):
        run(folder, resume=True)
    assert Run(folder).checkpoints.restore("best").step == before.step


def test_a_run_is_fine_tuned_on_other_classes(whole, tmp_path, capsys):
    folder, _ = whole
    run(tmp_path / "run", init=str(folder), data__source="digits:5-9", epochs=1)
    assert f"weights of {folder} with a new head" in capsys.readouterr().out
    before, after = (Run(place).checkpoints.restore("best").arrays for place in (folder, tmp_path / "run"))
    # The weights stay closer to the initial ones than those of a new network would.
    moved, size = (
        np.abs(array).mean()
        for array in (after["params/conv1.kernel"] - before["params/conv1.kernel"], before["params/conv1.kernel"])
    )
    assert 0 < moved < 0.5 * size


@pytest.mark.long
def test_a_learning_rate_of_zero_keeps_the_parameters(whole, tmp_path):
    """With the same classes, the head is kept too."""
    folder, _ = whole
    run(tmp_path / "run", init=str(folder), epochs=1, optimizer__learning_rate=0.0)
    before, after = (Run(place).checkpoints.restore("best").arrays for place in (folder, tmp_path / "run"))
    for key, array in before.items():
        if key.startswith("params/"):
            np.testing.assert_array_equal(after[key], array, err_msg=key)


@pytest.mark.long
def test_the_licence_of_the_weights_is_passed_on(whole, tmp_path):
    converted = tmp_path / "w.safetensors"
    weights = load_run_weights(whole[0])
    save_weights(converted, dataclasses.replace(weights, metadata={"licence": "CC-BY-NC-4.0"}))
    folder = tmp_path / "run"
    run(folder, init=str(converted), epochs=1)
    assert load_run_weights(folder).metadata["licence"] == "CC-BY-NC-4.0"
    run(folder, init=str(converted), epochs=2, resume=True)
    assert Run(folder).config().epochs == 2
    assert Run(folder).record()["licence"] == "CC-BY-NC-4.0", "also in the record of the resumed run"
    assert "licence" not in load_run_weights(whole[0]).metadata


@pytest.mark.long
@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, pytest.param({"model__stem": "cifar"}, marks=pytest.mark.slow)]
)
def test_other_precisions_and_stems_learn(tmp_path, changes):
    results = run(tmp_path / "run", epochs=3, limit_train_examples=None, **changes)
    assert results["test_accuracy"] > 0.5, "0.2 is chance"
    kept = Run(tmp_path / "run").checkpoints.restore("best").arrays
    assert {array.dtype for array in kept.values()} == {np.dtype(np.float32)}


@pytest.mark.long
def test_a_run_is_compared_with_random_weights(whole, tmp_path, capsys):
    values = TINY | {"init": str(whole[0]), "epochs": 1, "compare_with_scratch": True}
    folder = tmp_path / "run"
    results = train_and_compare(complete(values), Run(folder), resume=False, console=Console(), command=["test"])
    scratch = json.loads((folder / "scratch" / "results.json").read_text())
    assert results["scratch_test_accuracy"] == scratch["test_accuracy"]
    assert json.loads((folder / "results.json").read_text()) == results
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"test accuracy {results['test_accuracy']:.2%} from {whole[0]}, "
        f"{scratch['test_accuracy']:.2%} from random weights"
    )


@pytest.mark.long
def test_the_time_is_estimated_without_the_first_call(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 1e-6)
    run(tmp_path / "run", limit_train_examples=64 * 8)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time ")]
    assert len(lines) == 1
    steps = int(re.search(r"\(from (\d+) steps\)", lines[0])[1])
    assert 1 <= steps < 8, "those of the second call"


@pytest.mark.long
def test_nothing_is_traced_twice(tmp_path, monkeypatch):
    """Programs are not retraced between epochs, for calls of another length or for the last batch of an evaluation."""
    traced = collections.Counter()

    def counting(name):
        make = getattr(train_module.data, name)

        def made(*settings):
            function = make(*settings)

            def counted(*arguments):
                traced[name] += 1
                return function(*arguments)

            return counted

        return made

    for name in ("make_augment", "make_preprocess"):
        monkeypatch.setattr(train_module.data, name, counting(name))
    chunks = iter([1, 2, 1, 3, 1, 1, 2, 2, 1, 5, 5, 5])
    monkeypatch.setattr(
        StepsPerCall, "steps", property(lambda self: next(chunks, 1), lambda self, steps: None), raising=False
    )
    run(tmp_path / "run", observed=True, epochs=3)
    # Evaluation once; the report's logits twice: for their shape, and in the loop.
    assert traced == {"make_augment": 1, "make_preprocess": 1 + 2}
