"""Tests of the output of a run: on a terminal, to a file, and with --quiet."""

import contextlib
import os
import pty
import re
import sys
import threading

import pytest

from sft_jax.config import complete
from sft_jax.run.console import Console, epoch_line, epoch_note
from sft_jax.run.progress import Progress
from sft_jax.tasks.classification import Classification

CONFIG, TASK = complete({"epochs": 4, "batch_size": 50}), Classification(("a", "b"))


def under_way(**changes):
    """Returns the progress after 20 of 100 steps of epoch 2, in 4 s; the first epoch took 30 s including validation."""
    values = {"epoch": 1, "epoch_steps": 20, "epoch_loss": 18.0, "epoch_sums": {"correct": 690}, "epoch_seconds": 4.0}
    return Progress(**values | {"rows": [{"epoch_s": 30.0}]} | changes)


def test_the_note_after_the_bar():
    note = epoch_note(under_way(), CONFIG, 100, TASK)
    assert note == "loss 0.9000  train 69.0%  250 img/s  eta 0:16, run 1:16"


def test_the_first_epoch_is_extrapolated_to_the_others():
    note = epoch_note(under_way(epoch=0, rows=[]), CONFIG, 100, TASK)
    assert note.endswith("eta 0:16, run 1:16"), "16 s left and three epochs of 20 s"


def test_the_last_step_of_the_last_epoch():
    note = epoch_note(under_way(epoch=3, epoch_steps=100), CONFIG, 100, TASK)
    assert note.endswith("eta 0:00, run 0:00")


@contextlib.contextmanager
def terminal(monkeypatch, columns=90):
    """Makes standard output a terminal; afterwards the given list contains what was drawn."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    master, slave = pty.openpty()
    blocks, drawn = [], []

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while block := os.read(master, 4096):
                blocks.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield drawn
    reader.join()
    os.close(master)
    drawn.append(b"".join(blocks).decode())


def test_on_a_terminal_there_are_bars_and_spinners(monkeypatch):
    with terminal(monkeypatch) as drawn:
        console = Console()
        assert console.moves
        with console.progress("epoch 2/4", 100) as bar:
            bar.advance(20, "loss 0.9000  train 69.0%")
            with console.status("compiling the training step"):  # within the bar, as in a run
                console.line("a line above")
    for text in ("epoch 2/4", " 20%", "loss 0.9000  train 69.0%", "compiling the training step", "a line above\r\n"):
        assert text in drawn[0]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_bar_shrinks_before_the_note(monkeypatch, columns):
    note = epoch_note(under_way(), CONFIG, 100, TASK)
    with terminal(monkeypatch, columns) as drawn, Console().progress("epoch 2/4", 100) as bar:
        bar.advance(20, note)
    shown = note if columns >= 80 else note[:30]
    assert shown in drawn[0]
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", drawn[0]))
    assert all(len(line) <= columns for line in lines), "a wrapped line could not be overwritten"


@pytest.mark.parametrize("colour", ["", "1"])
def test_without_a_terminal_a_status_is_one_line(colour, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", colour)
    console = Console()
    assert not console.moves
    with console.status("compiling the training step"):
        pass
    assert capsys.readouterr().out == "compiling the training step\n"


def test_quiet_prints_only_the_last_conclusion_and_logs_everything(tmp_path, capsys):
    console = Console(quiet=True)
    console.line("run        here")
    console.log_to(tmp_path / "train.log")
    with console.status("compiling"), console.progress("epoch 1/2", 3) as bar:
        bar.advance(3, "loss 1")
    console.conclude("test accuracy 80%")
    console.conclude("test accuracy 90%")
    assert capsys.readouterr().out == ""
    console.close()
    assert capsys.readouterr().out == "test accuracy 90%\n"
    logged = [line.partition("  ")[2] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert logged == ["run        here", "compiling", "test accuracy 80%", "test accuracy 90%"]


def test_a_quiet_run_that_failed_prints_nothing(capsys):
    Console(quiet=True).close()
    assert capsys.readouterr().out == ""


def test_a_conclusion_is_printed_once(capsys):
    console = Console()
    console.conclude("test accuracy 90%")
    console.close()
    assert capsys.readouterr().out == "test accuracy 90%\n"


def test_an_epoch_says_what_was_spent_waiting_for_images():
    row = {"epoch": 1, "train_loss": 0.5, "train_accuracy": 0.6, "val_accuracy": 0.7, "best": 0.7}
    row["train_images_per_s"] = 250.0
    monitor = TASK.main()
    line = "epoch 1/4  loss 0.5000  train 60.0%  val 70.0%  best 70.0%  250 img/s  "
    assert epoch_line(row, 4, 30, TASK, monitor, waiting=0.004) == line + "eta 0:30"
    assert epoch_line(row, 4, 30, TASK, monitor, waiting=0.314) == line + "31% waiting for images  eta 0:30"
