"""What the user reads while a run goes on: log lines, kept in train.log too, and a progress bar on a terminal."""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Console:
    """Prints lines on standard output and, once a run's folder is known, appends them to its log."""

    def __init__(self) -> None:
        # Lines are data ("[45000:]", paths): no markup, no emoji for names, no colouring of numbers, no wrapping.
        self._rich = RichConsole(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._log: Path | None = None
        self._pending: list[str] = []
        self._progress: Progress | None = None

    def log_to(self, path: Path) -> None:
        """Lines, those already printed included, go to this file from now on."""
        self._log = path
        for line in self._pending:
            self._append(line)
        self._pending.clear()

    def line(self, text: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        self._rich.print(text)
        if self._log is None:
            self._pending.append(text)
        else:
            self._append(text)

    @contextlib.contextmanager
    def progress(self, title: str, steps: int, done: int = 0) -> Iterator["Bar"]:
        """A bar of `steps` steps, drawn only where standard output is a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._rich, transient=True, disable=not self._rich.is_terminal) as progress:
            yield Bar(progress, progress.add_task(title, total=steps, completed=done), title)

    def _append(self, text: str) -> None:
        stamp = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        assert self._log is not None
        with self._log.open("a") as log:
            log.write(f"{stamp}  {text}\n")


class Bar:
    """A progress bar under way."""

    def __init__(self, progress: Progress, task, title: str):
        self._progress, self._task, self._title = progress, task, title

    def set(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, steps: int, note: str = "") -> None:
        """`steps` more are done; `note` stands behind the title."""
        self._progress.update(self._task, advance=steps, description=f"{self._title}  {note}")


def duration(seconds: float) -> str:
    """12:03 or 1:12:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def epoch_line(row: dict, epochs: int, eta_seconds: float) -> str:
    """The line of one finished epoch, from its row of metrics.jsonl."""
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.1%}  "
        f"val {row['val_accuracy']:.1%}  best {row['best']:.1%}  {row['train_images_per_s']:.0f} img/s  "
        f"eta {duration(eta_seconds)}"
    )
