"""Tests a new task: training, evaluation, resuming, search and report."""

import json

import jax
import pytest
from tiny_runs import TINY, StopAt, assert_same_run, one_device, rows_of, run
from toy_task import Toy, errors_of

import sft_jax
from sft_jax.config import complete
from sft_jax.errors import StoppedError, UserError
from sft_jax.evaluate import evaluate
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.search import session
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.tasks import TASKS
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.start import read_dataset

CHANGES = {"task": "toy", "optimizer__learning_rate": 0.002, "evaluation__flips": True}


@pytest.fixture(autouse=True, scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "toy", Toy)
        patch.setattr(train_module, "Devices", one_device)
        yield


@pytest.fixture(scope="module")
def trained(known, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "run"
    return folder, run(folder, observed=True, epochs=4, **CHANGES)


@pytest.mark.long
def test_a_run_reports_the_metrics_of_the_task(trained):
    folder, results = trained
    rows = rows_of(folder)
    assert {"train_loss", "train_mae", "val_loss", "val_mae"} <= rows[0].keys()
    assert not [name for name in rows[0] if "accuracy" in name]
    assert rows[-1]["train_mae"] < rows[0]["train_mae"]
    assert results["best_val_mae"] == min(row["val_mae"] for row in rows) == rows[-1]["best"]
    assert {"test_loss", "test_mae", "test_mae_flips", "test_count"} <= results.keys()
    log = (folder / "train.log").read_text()
    assert f"train {rows[0]['train_mae']:.4f}  val {rows[0]['val_mae']:.4f}  best {rows[0]['val_mae']:.4f}" in log
    assert f"test mae {results['test_mae']:.4f}, loss {results['test_loss']:.4f} on 61 examples" in log
    page = (folder / "report.html").read_text()
    assert f"{results['test_mae']:.4f}" in page
    assert "Confusion" not in page


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_evaluation_is_exact_on_any_number_of_devices(trained, count):
    folder, results = trained
    config = complete(TINY | {"task": "toy"})
    experiment = Experiment(config, read_dataset(config, Console(mute=True)), Devices(jax.devices()[:count]))
    weights = experiment.weights(Run(folder).restored("best").arrays)
    metrics = experiment.test(*weights)
    whole = jax.jit(lambda images: experiment.network.apply(*weights, images, train=False)[0])
    split = experiment.dataset.test
    wanted = errors_of(whole(experiment.preprocess({"image": split.images})["image"]), split.labels)
    for name, value in wanted.items():
        assert metrics[f"test_{name}"] == pytest.approx(value, rel=1e-5)
        assert results[f"test_{name}"] == pytest.approx(value, rel=1e-5)


@pytest.mark.long
def test_the_command_evaluates_it_again(trained):
    folder, results = trained
    metrics, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    for name in ("test_mae", "test_loss", "best_val_mae", "test_count"):
        assert metrics[name] == pytest.approx(results[name], rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("method", ["full", "head_then_full"])
def test_a_stopped_run_resumes_bit_identically(method, tmp_path, monkeypatch):
    changes = {**CHANGES, "finetune__method": method, "optimizer__accumulate": 2}
    changes |= {"regularization__mixup": 0.5} if method == "full" else {"finetune__head_epochs": 1}
    run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", **changes)
    run(tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_its_settings_are_searched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "Devices", one_device)
    options = Options(trials=2, folds=1, sampler="grid", pruner="median", at_once=2, resume=False, command=["test"])
    config = complete(TINY | {"task": "toy", "epochs": 2, "optimizer.learning_rate": 0.002})
    winner = search(config, Space(["optimizer.learning_rate=choice(1e-6,0.002)"]), tmp_path, options, Console())
    assert winner.point == {"optimizer.learning_rate": "0.002"}
    trials = json.loads((tmp_path / "search.json").read_text())["trials"]
    assert trials[0]["mean"] == trials[0]["folds"][0]["val_mae"][trials[0]["epochs"] - 1] > 0
    assert "scored by mean absolute error on" in capsys.readouterr().out


@pytest.mark.long
def test_prediction_is_refused_because_the_task_has_none(trained):
    with pytest.raises(UserError, match="^toy has no predictions and no exports, only training and evaluation$"):
        sft_jax.load(trained[0])


@pytest.mark.long
def test_its_weights_start_a_run_of_classification(trained, tmp_path):
    folder, _ = trained
    results = run(tmp_path / "run", init=str(folder), epochs=1)
    assert results["test_count"] == 61
    assert "with a new head (they learnt task=toy)" in (tmp_path / "run" / "train.log").read_text()
