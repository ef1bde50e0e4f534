"""Tests that observers are called at the events of a run, and that a failing one does not end it."""

import pytest
from tiny_runs import TINY, one_device

from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training import trainer as train_module
from sft_jax.training.observer import Observer
from sft_jax.training.trainer import train


class Diary(Observer):
    """Records its calls; raises at the event `fails_at`."""

    def __init__(self, fails_at=None):
        self.events, self.fails_at = [], fails_at

    def _note(self, event, detail):
        self.events.append((event, detail))
        if event == self.fails_at:
            raise RuntimeError("out of ink\nand more")

    def __exit__(self, kind, *_):
        self.events.append(("closed", kind))

    def begin(self, experiment, run, progress, say):
        self._note("begin", run.folder.name)

    def epoch(self, progress):
        self._note("epoch", progress.rows[-1]["epoch"])

    def best(self, weights, figures, progress):
        self._note("best", figures["accuracy"] == progress.best and weights.params.keys() > set())

    def end(self, weights, results, progress):
        self._note("end", results["best_epoch"])


def run(folder, *observers, **changes):
    settings = {"console": Console(), "command": ["test"], "observers": lambda config: list(observers)}
    return train(complete(TINY | changes), Run(folder), resume=False, **settings)


@pytest.fixture(autouse=True)
def on_one_device(monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)


@pytest.mark.long
def test_observers_are_called_in_order(tmp_path):
    diary = Diary()
    results = run(tmp_path / "run", diary)
    bests = [("best", True)] * 2
    epochs = [event for event in diary.events if event[0] == "epoch"]
    assert epochs == [("epoch", 1), ("epoch", 2)]
    assert diary.events[0] == ("begin", "run")
    assert diary.events[1:3] == [("epoch", 1), bests[0]]
    assert diary.events[-2:] == [("end", results["best_epoch"]), ("closed", None)]
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "results.json", "train.log", "checkpoints"} <= written
    assert not {"report.html", "tensorboard"} & written, "only observers write these"


@pytest.mark.long
@pytest.mark.parametrize("event", ["begin", "epoch", "best", "end"])
def test_a_failing_observer_is_dropped_and_the_run_continues(event, tmp_path, capsys):
    broken, other = Diary(fails_at=event), Diary()
    results = run(tmp_path / "run", broken, other)
    assert Run(tmp_path / "run").results() == results
    assert [name for name, _ in broken.events].count(event) == 1
    assert broken.events[-1] == ("closed", None)
    assert other.events[-2][0] == "end"
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("notice: ")]
    assert len(lines) == 1
    assert lines[0] == "notice: Diary failed, the run continues without it: RuntimeError: out of ink"


def test_an_observer_that_cannot_be_created_is_refused_before_anything_is_written(tmp_path):
    def observers(config):
        raise UserError("no ink here; buy some")

    settings = {"console": Console(), "command": ["test"], "observers": observers}
    with pytest.raises(UserError, match="no ink here"):
        train(complete(TINY), Run(tmp_path / "run"), resume=False, **settings)
    assert not (tmp_path / "run").exists()


def test_observers_are_closed_when_a_run_fails(tmp_path):
    diary = Diary()
    with pytest.raises(Exception, match="the loss is|is not finite"):
        run(tmp_path / "run", diary, **{"optimizer.learning_rate": 3e38})
    assert diary.events[-1][0] == "closed"
    assert diary.events[-1][1] is not None
