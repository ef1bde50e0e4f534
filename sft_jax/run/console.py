"""Console output of a run: lines, which are also written to train.log, and progress bars on a terminal."""

import contextlib
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console as RichConsole
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from sft_jax.run.progress import Progress
from sft_jax.tasks import Monitor, Task


class Console:
    """Prints lines on standard output and, once the run's folder is known, appends them to its log.

    With `quiet` only the last conclusion is printed, by `close`; the log still gets every line. With `mute` there is no
    output at all, for all processes but one.
    """

    def __init__(self, *, quiet: bool = False, mute: bool = False) -> None:
        # Lines contain data ("[45000:]", paths), so that markup, emoji, highlighting and wrapping are off. FORCE_COLOR,
        # which notebooks and CI set, must not make rich draw bars into a pipe.
        terminal = sys.stdout.isatty()
        self._rich = RichConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, force_terminal=terminal)
        self._quiet, self._mute, self._conclusion = quiet or mute, mute, ""
        self._log: Path | None = None
        self._log_failed = False
        self._pending: list[str] = []
        self._drawn: RichProgress | None = None

    @property
    def moves(self) -> bool:
        """Whether progress bars and spinners are drawn, i.e. on a terminal."""
        return self._rich.is_terminal and not self._quiet

    def log_to(self, path: Path) -> None:
        """Writes all lines to this file from now on, including those already printed."""
        self._log = path
        for line in self._pending:
            self._append(line)
        self._pending.clear()

    def line(self, text: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        if self._mute:
            return
        if not self._quiet:
            self._rich.print(text)
        if self._log is None:
            self._pending.append(text)
        else:
            self._append(text)

    def conclude(self, text: str) -> None:
        """Prints a line that summarises the result of the command."""
        self.line(text)
        self._conclusion = text

    def close(self) -> None:
        """Prints the last conclusion if `quiet`; call it after success."""
        if self._quiet and not self._mute and self._conclusion:
            self._rich.print(self._conclusion)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Shows a spinner with the elapsed time during a slow operation, or prints a line if there is no terminal."""
        if not self.moves:
            self.line(text)
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        spinner = RichProgress(*columns, console=self._rich, transient=True)
        spinner.add_task(text, total=None)
        with self._shown(spinner):
            yield

    @contextlib.contextmanager
    def progress(self, title: str, steps: int, done: int = 0) -> Iterator["Bar"]:
        """Shows a progress bar of `steps` steps if standard output is a terminal."""
        columns = (
            SpinnerColumn(),
            TextColumn(title),
            BarColumn(bar_width=None),  # the remaining width
            TaskProgressColumn(),
            TextColumn("{task.description}"),
        )
        progress = RichProgress(*columns, console=self._rich, transient=True, expand=True)
        bar = Bar(progress, progress.add_task("", total=steps, completed=done))
        with self._shown(progress) if self.moves else contextlib.nullcontext():
            yield bar

    @contextlib.contextmanager
    def _shown(self, progress: RichProgress) -> Iterator[None]:
        """Draws `progress` and pauses the outer one, because rich before 14.1 draws only one at a time."""
        outer, self._drawn = self._drawn, progress
        if outer is not None:
            outer.stop()
        try:
            with progress:
                yield
        finally:
            self._drawn = outer
            if outer is not None:
                outer.start()

    def _append(self, text: str) -> None:
        stamp = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        assert self._log is not None
        try:
            with self._log.open("a") as log:
                log.write(f"{stamp}  {text}\n")
        except OSError as error:
            # A run must not fail because of its log; if the disk is full, the next checkpoint fails.
            if not self._log_failed:
                self._rich.print(f"notice: {self._log} cannot be written: {error}")
            self._log_failed = True


class Bar:
    """An active progress bar."""

    def __init__(self, progress: RichProgress, task):
        self._progress, self._task = progress, task

    def set(self, done: int, total: int) -> None:
        """Sets the progress to `done` of `total` steps."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, steps: int, note: str = "") -> None:
        """Adds `steps` finished steps; shows `note` after the bar."""
        self._progress.update(self._task, advance=steps, description=note)


def duration(seconds: float) -> str:
    """Formats a duration, e.g. 12:03 or 1:12:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def epoch_line(row: dict, epochs: int, eta_seconds: float, task: Task, monitor: Monitor, waiting: float = 0.0) -> str:
    """Formats the line of a finished epoch from its row of metrics.jsonl.

    It shows the task's main metric, also `monitor` if that is another one, and the share of the training time that was
    spent `waiting` for examples if that is 1% or more.
    """
    main = task.main()
    trained = row.get(f"train_{main.figure}")
    training = "" if trained is None else f"train {main.shown(trained, 1)}  "
    other = "" if monitor == main else f"{monitor.name} {monitor.shown(row[monitor.name], 1)}  "
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  {training}"
        f"val {main.shown(row[main.name], 1)}  {other}best {monitor.shown(row['best'], 1)}  "
        f"{row['train_images_per_s']:.0f} {short_unit(task)}/s  "
        f"{f'{waiting:.0%} waiting for {task.unit}s  ' if waiting >= 0.01 else ''}eta {duration(eta_seconds)}"
    )


def short_unit(task: Task) -> str:
    """Returns what an example is called in the epoch's line."""
    return {"image": "img"}.get(task.unit, f"{task.unit}s")


def epoch_note(progress: Progress, config: ConfigDict, steps_per_epoch: int, task: Task) -> str:
    """Formats the metrics so far of an unfinished epoch with at least one step, to be shown after the progress bar.

    The first eta is for the epoch, without validation; the second is for the run, including the validation of later
    epochs if one epoch is finished.
    """
    done, seconds = progress.epoch_steps, progress.epoch_seconds
    images = done * config.batch_size
    left = (steps_per_epoch - done) * seconds / done
    epoch_s = progress.rows[-1]["epoch_s"] if progress.rows else steps_per_epoch * seconds / done
    run_left = left + (config.epochs - progress.epoch - 1) * epoch_s
    main = task.main()
    trained = task.train_figures(progress.epoch_sums, images).get(main.figure)
    training = "" if trained is None else f"train {main.shown(trained, 1)}  "
    return (
        f"loss {progress.epoch_loss / done:.4f}  {training}"
        f"{images / max(seconds, 1e-9):.0f} {short_unit(task)}/s  eta {duration(left)}, run {duration(run_left)}"
    )
