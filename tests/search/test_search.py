"""Tests of whole searches: their output, resuming them, and the command line."""

import csv
import json
import signal
import sys

import numpy as np
import optuna
import psutil
import pytest
from tiny_runs import TINY, one_device

from sft_jax.config import complete, load_config
from sft_jax.errors import DivergedError, StoppedError, UserError, run_command
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import Devices
from sft_jax.search import session, study
from sft_jax.search.__main__ import main
from sft_jax.search.results import DIVERGED, PRUNED
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.search.vmapped import VmappedTrials
from sft_jax.training.trainer import train

RATES = "optimizer.learning_rate=log(0.002,0.05)"


def run(folder, *texts, changes=None, devices=one_device, **options):
    defaults = {"trials": 3, "folds": 1, "sampler": "tpe", "pruner": "none", "at_once": 1, "resume": False}
    config = complete(TINY | (changes or {}))
    chosen = Options(**(defaults | options), command=["test"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "Devices", devices)
        return search(config, Space(texts or [RATES]), folder, chosen, Console())


def trials_of(folder):
    """Returns the trials of search.json without times."""
    record = json.loads((folder / "search.json").read_text())
    for trial in record["trials"]:
        for timed in (trial, *trial["folds"]):
            del timed["seconds"]
    return record["trials"]


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory):
    """An uninterrupted search by cross-validation."""
    folder = tmp_path_factory.mktemp("searches") / "whole"
    return folder, run(folder, folds=2)


@pytest.mark.long
def test_best_py_is_a_recipe_that_gives_the_reported_score(tmp_path, capsys):
    folder = tmp_path / "search"
    winner = run(folder, changes={"optimizer.weight_decay": 5e-4}, devices=Devices)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"run it     python -m sft_jax.main --config {folder}/best.py --workdir {folder}/best"
    config = load_config(str(folder / "best.py"))
    assert config.optimizer.learning_rate == winner.point["optimizer.learning_rate"]
    assert config.epochs == winner.epochs
    results = train(config, Run(folder / "best"), resume=False, console=Console(), command=["test"])
    assert results["best_val_accuracy"] == winner.mean
    rows = Run(folder / "best").rows()
    assert [row["val_accuracy"] for row in rows] == winner.folds[0].figures["val_accuracy"][: winner.epochs]
    # Of another program, whose operations are fused in other places.
    assert [row["train_loss"] for row in rows] == pytest.approx(winner.folds[0].train_loss[: winner.epochs], rel=1e-6)


@pytest.mark.long
def test_the_files_of_a_cross_validated_search(cross_validated, capsys):
    folder, winner = cross_validated
    whole = json.loads((folder / "search.json").read_text())
    first = whole["trials"][0]
    assert whole["best_trial"] == first["trial"] == winner.number
    assert [trial["rank"] for trial in whole["trials"]] == [1, 2, 3]
    accuracies = np.array([fold["val_accuracy"] for fold in first["folds"]])
    assert accuracies.shape == (2, 2)
    assert first["epochs"] == accuracies.mean(0).argmax() + 1
    assert first["per_fold"] == accuracies[:, first["epochs"] - 1].tolist()
    assert first["mean"] == pytest.approx(np.mean(first["per_fold"]))
    assert first["standard_deviation"] == pytest.approx(np.std(first["per_fold"], ddof=1))
    with (folder / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == [trial["mean"] for trial in whole["trials"]]
    assert [float(row["fold_2"]) for row in rows] == [trial["per_fold"][1] for trial in whole["trials"]]
    for plot in ("dimensions.png", "history.png", "curves.png"):
        assert (folder / plot).read_bytes()[:4] == b"\x89PNG"
    log = (folder / "search.log").read_text()
    assert "validation accuracy on 2 folds of the 320 training images" in log
    assert "rank  trial  learning_rate" in log
    assert f"{winner.mean:.2%} +- {winner.deviation:.2%} over 2 folds" in (folder / "best.py").read_text()


def test_the_database_is_closed(cross_validated):
    """Python 3.13 warns about open connections, and they lock the file on Windows."""
    folder, _ = cross_validated
    assert not [file.path for file in psutil.Process().open_files() if file.path.startswith(str(folder))]


def test_a_refused_search_leaves_the_database_closed(cross_validated):
    folder, _ = cross_validated
    with pytest.raises(UserError, match="was started with other settings"):
        run(folder, folds=2, sampler="random", resume=True)
    assert not [file.path for file in psutil.Process().open_files() if file.path.startswith(str(folder))]


class StopAt:
    """Replaces `StopRequest`; imitates a SIGTERM that arrives at its `calls`-th query."""

    def __init__(self, calls):
        self._left = calls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def signal(self):
        self._left -= 1
        return signal.SIGTERM if self._left <= 0 else None


def test_a_stopped_search_resumes_identically(cross_validated, tmp_path, monkeypatch):
    """A kill has the same effect, because a stop saves nothing in addition."""
    folder = tmp_path / "search"
    trained = []
    epochs = VmappedTrials.epochs
    monkeypatch.setattr(
        VmappedTrials, "epochs", lambda *arguments: trained.append(arguments[1]) or epochs(*arguments), raising=True
    )
    # Each of four folds has two epochs of at least one chunk, so this is in the second trial.
    monkeypatch.setattr("sft_jax.search.vmapped.StepsPerCall", OneEpoch)
    monkeypatch.setattr(session, "StopRequest", lambda: StopAt(7))
    with pytest.raises(StoppedError, match="stopped by SIGTERM; finished trials and folds are kept, add --resume"):
        run(folder, folds=2)
    assert len(trained) == 4
    monkeypatch.setattr(session, "StopRequest", lambda: StopAt(1000))
    run(folder, folds=2, resume=True)
    assert len(trained) == 4 + 3, "the second trial's first fold is not trained again"
    assert trials_of(folder) == trials_of(cross_validated[0])


class OneEpoch:
    """Replaces `StepsPerCall`, so that a call is an epoch."""

    steps = 5

    def timing(self, steps):
        return pytest.MonkeyPatch.context()  # a context that does nothing here


def test_a_used_folder_is_refused(cross_validated, tmp_path):
    folder, _ = cross_validated
    with pytest.raises(UserError, match="already contains a search; add --resume to continue it, or use another"):
        run(folder, folds=2)
    with pytest.raises(UserError, match=r"changed: folds \(was 2, now 1\)"):
        run(folder, resume=True)
    with pytest.raises(UserError, match="changed: space"):
        run(folder, "optimizer.learning_rate=log(0.002,0.06)", folds=2, resume=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="contains a run; use another --workdir"):
        run(tmp_path)


@pytest.mark.long
def test_a_resumed_search_may_have_more_trials(cross_validated, tmp_path):
    before = trials_of(cross_validated[0])
    folder = tmp_path / "search"
    run(folder, folds=2, trials=2)
    run(folder, folds=2, trials=3, resume=True)
    assert trials_of(folder) == before


@pytest.mark.slow
def test_trials_at_once_report_their_timing(tmp_path, capsys):
    run(tmp_path / "search", sampler="grid", trials=2, at_once=2)
    printed = capsys.readouterr().out
    assert "at once    2 trials: set by --at-once; " in printed
    assert " ms per step and trial with 2 at once, " in printed
    assert "2 at once; sequentially at least" in printed
    trials = trials_of(tmp_path / "search")
    assert sorted(trial["optimizer.learning_rate"] for trial in trials) == pytest.approx([0.002, 0.05])


@pytest.mark.long
def test_a_diverged_trial_ranks_last_and_does_not_end_the_search(tmp_path):
    folder = tmp_path / "search"
    winner = run(folder, "optimizer.learning_rate=choice(1e30,0.02)", sampler="grid", trials=2)
    assert winner.point == {"optimizer.learning_rate": "0.02"}
    last = json.loads((folder / "search.json").read_text())["trials"][-1]
    assert (last["state"], last["mean"]) == (DIVERGED, None)


@pytest.mark.long
def test_early_stopping_of_a_trial_equals_that_of_a_run(tmp_path):
    """Only epochs of the last phase count."""
    changes = {
        "optimizer.learning_rate": 0.0,
        "finetune.batch_norm": "freeze",
        "finetune.method": "head_then_full",
        "finetune.head_epochs": 3,
        "regularization.early_stopping": 1,
        "epochs": 7,
    }
    winner = run(tmp_path / "search", "optimizer.momentum=linear(0.1,0.9)", trials=1, changes=changes)
    assert len(winner.folds[0].score) == 3 + 2


def test_a_search_of_pruned_trials_has_no_score(tmp_path, monkeypatch):
    class Merciless(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 1

    monkeypatch.setattr(study, "_pruner", lambda name: Merciless())
    folder = tmp_path / "search"
    with pytest.raises(DivergedError, match="no trial has a score"):
        run(folder, trials=1, pruner="median")
    (pruned,) = json.loads((folder / "search.json").read_text())["trials"]
    assert pruned["state"] == PRUNED
    assert len(pruned["folds"][0]["val_accuracy"]) == 1


@pytest.mark.parametrize("name", study.PRUNERS)
def test_pruners_end_bad_trials(name):
    """Bad trials after several good ones are pruned, except with "none"."""
    created = optuna.create_study(direction="maximize", pruner=study._pruner(name))

    def objective(trial):
        for step in range(1, 10):
            trial.report(0.1 if trial.number == 9 else 0.9, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.9

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    created.optimize(objective, n_trials=10)
    assert (created.trials[9].state == optuna.trial.TrialState.PRUNED) == (name != "none")


# --- The command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--space", "epoch=int(1,2)"], "unknown config key 'epoch'; did you mean 'epochs'"),
        (["--space", "batch_size=choice(64,100)"], "batch_size=100 does not divide evenly over 8 devices"),
        (["--space", "optimizer.name=choice(sgd,adamv)"], "did you mean 'adam"),
        (["--space", RATES, "--folds", "500"], "a class has only"),
        (["--space", "epochs=int(1,9)", "--sampler", "grid", "--trials", "4"], "use --trials 9 or more"),
    ],
    ids=["key", "batch", "optimizer", "folds", "grid"],
)
def test_wrong_input_is_one_line_and_exit_code_2(flags, message, tmp_path, pytestconfig, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_file = f"{pytestconfig.rootpath}/configs/digits.py:source"
    monkeypatch.setattr(sys, "argv", ["search", "--config", recipe_file, *flags])
    assert run_command(main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("flags", [[], ["--space", RATES, "--trials", "0"], ["--space", RATES, "--pruner", "x"]])
def test_wrong_flags_exit_with_2(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--config", "a.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
