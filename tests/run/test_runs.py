"""Tests of the folder of a run: its record, its use and its weights."""

import importlib.metadata
import json
import sys

import numpy as np
import pytest

import sft_jax
from sft_jax.config import complete
from sft_jax.data.sources.listing import Record
from sft_jax.errors import UserError
from sft_jax.run.folder import RESUMABLE_KEYS, Run
from sft_jax.run.weights import load_run_weights

CONFIG = {"epochs": 3, "model.name": "resnet34", "optimizer.learning_rate": 0.1, "data.mean": (0.1, 0.2, 0.3)}
ARRAYS = {
    "params/fc.kernel": np.ones((2, 3), np.float32),
    "batch_stats/bn1.mean": np.zeros(2, np.float32),
    "opt_state/1/trace/fc.kernel": np.ones((2, 3), np.float32),
    "step": np.array(5, np.int32),
}


def message(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "runs" / "cifar10")
    run.write_config(complete(CONFIG), devices="8 x cpu", command=["main.py", "--config", "dög.py"])
    return run


def test_a_run_is_recorded(run):
    record = json.loads(run.config_file.read_text())
    assert record.keys() == {"config", "versions", "devices", "command", "digest"}
    assert run.record() == {key: value for key, value in record.items() if key != "digest"}
    assert record["config"]["optimizer"]["learning_rate"] == 0.1
    assert record["config"]["seed"] == 0, "defaults are recorded, too"
    assert record["versions"] == {"sft-jax": sft_jax.__version__} | {
        name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")
    }
    assert (record["devices"], record["command"]) == ("8 x cpu", ["main.py", "--config", "dög.py"])
    assert run.config() == complete(CONFIG)
    assert [path.name for path in run.folder.iterdir()] == ["config.json"]


def test_a_new_folder_may_be_used(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        for resume in (False, True):
            Run(folder).check_use(complete({}), resume=resume)
        assert not Run(folder).exists()


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    said = message(lambda: Run(tmp_path / "run").check_use(complete({}), resume=False))
    assert said == f"--workdir {tmp_path}/run is a file; give a folder"
    said = message(lambda: Run(tmp_path / "run").write_config(complete({})))
    assert said.startswith(f"{tmp_path}/run/config.json cannot be written: ")


def test_a_used_folder_is_refused(run):
    assert run.exists()
    said = message(lambda: run.check_use(complete(CONFIG), resume=False))
    assert said == f"{run.folder} already contains a run; add --resume to continue it, or use another --workdir"


def test_the_same_config_resumes(run):
    run.check_use(complete(CONFIG), resume=True)


def test_another_config_is_refused(run):
    changed = CONFIG | {"seed": 1, "data.mean": (0.1, 0.2, 0.4), "model.name": "resnet18", "epochs": 9}
    said = message(lambda: run.check_use(complete(changed), resume=True))
    assert said == (
        f"{run.folder} was started with another config; resume it with the same one, or start a new run from its "
        f"weights with --config.init={run.folder} and another --workdir; "
        "changed: data.mean (was (0.1, 0.2, 0.3), now (0.1, 0.2, 0.4)), "
        "model.name (was 'resnet34', now 'resnet18'), seed (was 0, now 1)"
    )


def test_some_keys_may_change_on_resuming(run):
    changes = {
        "epochs": 9,
        "save_minutes": 1.0,
        "compare_with_scratch": True,
        "data.dir": "elsewhere",
        "data.download": False,
        "data.placement": "sharded",
        "data.allow_overlap": True,
        "regularization.early_stopping": 3,
    }
    assert changes.keys() == RESUMABLE_KEYS
    groups = {"logging.wandb": True, "logging.mlflow": True, "evaluation.flips": True}
    run.check_use(complete(CONFIG | changes | groups), resume=True)


def test_a_changed_config_updates_the_record(run):
    """Earlier records are kept, and an unchanged one is not rewritten."""
    first = run.config_file.read_text()
    assert run.update_config(complete(CONFIG)) is None
    assert run.config_file.read_text() == first
    assert run.update_config(complete(CONFIG | {"epochs": 9}), command=["more"]) == run.folder / "config.1.json"
    assert (run.config().epochs, run.record()["command"]) == (9, ["more"])
    assert (run.folder / "config.1.json").read_text() == first
    second = run.config_file.read_text()
    assert run.update_config(complete(CONFIG)) == run.folder / "config.2.json"
    assert (run.folder / "config.2.json").read_text() == second


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"config": null}', b'{"config": 3}', b'"text"', b"\xff\xfe"]
)
def test_an_unreadable_record_is_an_error(run, content):
    run.config_file.write_bytes(content)
    for action in (run.config, lambda: run.check_use(complete(CONFIG), resume=True)):
        assert message(action).startswith(f"{run.config_file} cannot be read: ")


def test_a_modified_record_is_refused(run):
    """Otherwise images could be preprocessed differently from training."""
    run.config_file.write_text(run.config_file.read_text().replace("0.2", "0.4"))
    assert message(run.config) == (f"{run.config_file} was modified after it was written; restore the original file")


def test_weights_of_a_run(run):
    for name, factor in (("best", 1), ("latest", 2)):
        arrays = {key: array * array.dtype.type(factor) for key, array in ARRAYS.items()}
        run.checkpoints.save(name, 5, arrays, {"class_names": ["cat", "dög"]})
    for which, factor in (("best", 1), ("latest", 2)):
        weights = load_run_weights(run.folder, which)
        assert weights.arrays.keys() == {"fc.kernel", "bn1.mean"}
        np.testing.assert_array_equal(weights.arrays["fc.kernel"], np.full((2, 3), factor, np.float32), strict=True)
        assert (weights.arch, weights.class_names) == ("resnet34", ("cat", "dög"))
        assert weights.metadata == {"source": str(run.folder), "task": "classification", "learnt": "{}"}


def test_missing_weights_are_an_error(run, tmp_path):
    empty = tmp_path / "empty"
    assert message(lambda: load_run_weights(empty)) == f"{empty} contains no run: it has no config.json"
    assert message(lambda: load_run_weights(run.folder)) == (
        f"{run.folder} has no best checkpoint yet because its first epoch is not finished; continue the run "
        f"with --resume"
    )
    run.checkpoints.save("best", 5, ARRAYS, {"class_names": ["cat"]})
    (run.folder / "checkpoints" / "best" / "5" / "facts" / "metadata").unlink()
    assert message(lambda: load_run_weights(run.folder)).startswith(
        f"there is no valid best checkpoint; checkpoint {run.folder}/checkpoints/best/5 is damaged"
    )


def test_a_failed_write_keeps_the_old_record(run, monkeypatch):
    before = run.config_file.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(sys.modules["os"], "replace", full)
    assert "config.json cannot be written: No space left" in message(lambda: run.write_config(complete({})))
    assert run.config_file.read_bytes() == before


def test_a_source_may_move_if_its_files_are_recorded(run):
    """`as_recorded` then compares the files with the record."""
    values = CONFIG | {"data.source": "folder:flowers"}
    run.write_config(complete(values))
    for moved in ("folder:/elsewhere/flowers", "csv:flowers.csv"):
        assert "changed: data.source" in message(
            lambda moved=moved: run.check_use(complete(values | {"data.source": moved}), resume=True)
        )
    run.write_dataset_record(Record(("a", "b"), parts={}))
    run.check_use(complete(values | {"data.source": "folder:/elsewhere/flowers"}), resume=True)
    for other in ("csv:flowers.csv", "tfds:cifar10"):
        assert "changed: data.source" in message(
            lambda other=other: run.check_use(complete(values | {"data.source": other}), resume=True)
        )
