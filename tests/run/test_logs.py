"""Tests that logs contain every epoch exactly once, and that a failing log does not end a run."""

import json
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from sft_jax.errors import UserError
from sft_jax.run.loggers import IDS_FILE, Logs
from sft_jax.run.progress import Progress

CONFIG = {"epochs": 3, "optimizer": {"name": "sgd"}, "logging": {"wandb": False, "mlflow": False}}
NONE = CONFIG["logging"]


def row(epoch):
    return {"epoch": epoch, "step": 5 * epoch, "train_loss": 1 / epoch, "val_accuracy": 0.1 * epoch, "best": None}


def begin(logs, folder, rows=(), said=None):
    folder.mkdir(exist_ok=True)
    logs.open(folder, CONFIG, rows, (said if said is not None else []).append)


def points(folder):
    """Returns (tag, step, value) of the event files, as tensorboardX reads them."""
    values_of_tags = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length, of_length = struct.unpack("<QI", data[:12])
            content, of_content = struct.unpack(f"<{length}sI", data[12 : 16 + length])
            assert (of_length, of_content) == (masked_crc32c(data[:8]), masked_crc32c(content))
            event = Event.FromString(content)
            assert event.file_version == ("" if event.HasField("summary") else "brain.Event:2")
            values_of_tags += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return values_of_tags


def losses(folder):
    return [(step, pytest.approx(value)) for tag, step, value in points(folder) if tag == "loss/train"]


def test_tensorboard_is_written_at_the_end_of_each_epoch(tmp_path):
    with Logs(NONE) as logs:
        begin(logs, tmp_path)
        logs.epoch(Progress(rows=[row(1)]))
        assert losses(tmp_path) == [(5, 1.0)], "an epoch is written at its end"
        logs.epoch(Progress(rows=[row(2)]))
        logs.end(None, {"test_accuracy": 0.75, "class_names": ["a"], "ece": 0.5}, Progress())
    assert losses(tmp_path) == [(5, 1.0), (10, 0.5)]
    assert {tag for tag, _, _ in points(tmp_path)} == {"epoch", "loss/train", "accuracy/val", "accuracy/test"}
    assert ("accuracy/test", 10, 0.75) in points(tmp_path)


def test_tensorboard_after_resuming_has_each_row_once(tmp_path):
    with Logs(NONE) as logs:
        begin(logs, tmp_path)
        for epoch in (1, 2, 3):
            logs.epoch(Progress(rows=[row(epoch)]))
    # The third epoch was not saved and is trained again.
    with Logs(NONE) as logs:
        begin(logs, tmp_path, [row(1), row(2)])
        logs.epoch(Progress(rows=[row(3)]))
    assert losses(tmp_path) == [(5, 1.0), (10, 0.5), (15, pytest.approx(1 / 3))]


def test_a_failing_log_is_dropped(tmp_path):
    said = []
    (tmp_path / "tensorboard").write_text("a file in the way")
    with Logs(NONE) as logs:
        begin(logs, tmp_path, said=said)
        logs.epoch(Progress(rows=[row(1)]))
        logs.end(None, {"test_accuracy": 1.0}, Progress())
    assert len(said) == 1
    assert said[0].startswith("notice: tensorboard failed, the run continues without it: ")


class FakeWandB(types.ModuleType):
    """Imitates a server, with a history per run."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.calls = {}, []

    def init(self, *, project, name, id, resume, dir, config):
        assert resume == "allow"
        self.calls.append((project, name, config))
        history = self.runs.setdefault(id, [])
        run = types.SimpleNamespace(step=history[-1][0] + 1 if history else 0, summary={})

        def log(values, step):
            assert not history or step > history[-1][0], "steps must increase"
            history.append((step, values))

        run.log, run.finish = log, lambda exit_code: self.calls.append(exit_code)
        self.last = run
        return run


class FakeMLflow(types.ModuleType):
    """Imitates a server, with the metrics of runs."""

    def __init__(self):
        super().__init__("mlflow")
        self.metrics, self.params, self.ends = {}, [], []

    def start_run(self, run_id=None, run_name=None):
        self.run = run_id or f"{run_name}-1"
        history = self.metrics.setdefault(self.run, [])
        latest = {name: value for values, _ in history for name, value in values.items()}
        return types.SimpleNamespace(
            info=types.SimpleNamespace(run_id=self.run), data=types.SimpleNamespace(metrics=latest)
        )

    def log_metrics(self, values, step=None):
        assert all(isinstance(value, int | float) for value in values.values())
        self.metrics[self.run].append((values, step))

    def log_params(self, values):
        self.params.append(values)

    def end_run(self, status):
        self.ends.append(status)


@pytest.fixture
def fakes(monkeypatch):
    both = FakeWandB(), FakeMLflow()
    for fake in both:
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return both


ALL = {"wandb": True, "mlflow": True}


def test_services_get_every_row_once(tmp_path, fakes):
    wandb, mlflow = fakes
    folder = tmp_path / "flowers"

    def interrupted():
        with Logs(ALL) as logs:
            begin(logs, folder)
            logs.epoch(Progress(rows=[row(1)]))
            logs.epoch(Progress(rows=[row(2)]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert wandb.calls == [("sft-jax", "flowers", {"epochs": 3, "optimizer.name": "sgd", **LOGGING}), 1]
    assert mlflow.ends == ["FAILED"]
    with Logs(ALL) as logs:
        begin(logs, folder, [row(1), row(2)])
        logs.epoch(Progress(rows=[row(3)]))
        logs.end(None, {"test_accuracy": 0.75, "class_names": ["a"]}, Progress())
    assert [[step for step, _ in history] for history in wandb.runs.values()] == [[1, 2, 3]]
    assert [(step, values["epoch"]) for values, step in mlflow.metrics["flowers-1"][:-1]] == [(1, 1), (2, 2), (3, 3)]
    assert wandb.last.summary == {"test_accuracy": 0.75}
    assert mlflow.metrics["flowers-1"][-1] == ({"test_accuracy": 0.75}, None)
    assert mlflow.params == [{"epochs": 3, "optimizer.name": "sgd", **LOGGING}], "logged once"
    assert (wandb.calls[-1], mlflow.ends[-1]) == (0, "FINISHED")
    assert json.loads((folder / IDS_FILE).read_text()).keys() == ALL.keys()


LOGGING = {"logging.wandb": False, "logging.mlflow": False}


def test_a_service_that_is_enabled_later_gets_the_earlier_rows(tmp_path, fakes):
    wandb, _ = fakes
    with Logs({"wandb": True, "mlflow": False}) as logs:
        begin(logs, tmp_path, [row(1), row(2)])
    assert [[step for step, _ in history] for history in wandb.runs.values()] == [[1, 2]]


def test_a_failing_service_does_not_end_the_run(tmp_path, fakes):
    wandb, mlflow = fakes
    said = []

    def unreachable(*_, **__):
        raise ConnectionError("no route to host\nmore")

    with Logs(ALL) as logs:
        begin(logs, tmp_path, said=said)
        logs.epoch(Progress(rows=[row(1)]))
        wandb.last.log = unreachable
        logs.epoch(Progress(rows=[row(2)]))
        logs.epoch(Progress(rows=[row(3)]))
    assert said == ["notice: wandb failed, the run continues without it: ConnectionError: no route to host"]
    assert len(next(iter(mlflow.metrics.values()))) == 3, "the others continue"
    assert len(losses(tmp_path)) == 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=f"config.logging.{name}=True, but {name} cannot be imported .*; run pip install"
    ):
        Logs(NONE | {name: True})
