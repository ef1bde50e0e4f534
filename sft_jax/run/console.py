"""What the user reads while a run goes on: log lines, kept in train.log too, and what moves on a terminal."""

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
    """Prints lines on standard output and, once a run's folder is known, appends them to its log.

    With `quiet` nothing is printed but, by `close`, the last conclusion; the log has every line. With `mute` there is
    neither: of several processes one speaks.
    """

    def __init__(self, *, quiet: bool = False, mute: bool = False) -> None:
        # Lines are data ("[45000:]", paths): no markup, no emoji for names, no colouring of numbers, no wrapping.
        # FORCE_COLOR, which notebooks and CI set, makes no terminal of a pipe: bars cannot be drawn over there.
        terminal = sys.stdout.isatty()
        self._rich = RichConsole(markup=False, emoji=False, highlight=False, soft_wrap=True, force_terminal=terminal)
        self._quiet, self._mute, self._conclusion = quiet or mute, mute, ""
        self._log: Path | None = None
        self._log_failed = False
        self._pending: list[str] = []
        self._drawn: RichProgress | None = None

    @property
    def moves(self) -> bool:
        """Whether bars and spinners are drawn: on a terminal."""
        return self._rich.is_terminal and not self._quiet

    def log_to(self, path: Path) -> None:
        """Lines, those already printed included, go to this file from now on."""
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
        """A line that says what came of it all."""
        self.line(text)
        self._conclusion = text

    def close(self) -> None:
        """To be called when all went well."""
        if self._quiet and not self._mute and self._conclusion:
            self._rich.print(self._conclusion)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """While something takes seconds: a spinner with the time it takes, or one line where there is no terminal."""
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
        """A bar of `steps` steps, drawn only where standard output is a terminal."""
        columns = (
            SpinnerColumn(),
            TextColumn(title),
            BarColumn(bar_width=None),  # what the text leaves
            TaskProgressColumn(),
            TextColumn("{task.description}"),
        )
        progress = RichProgress(*columns, console=self._rich, transient=True, expand=True)
        bar = Bar(progress, progress.add_task("", total=steps, completed=done))
        with self._shown(progress) if self.moves else contextlib.nullcontext():
            yield bar

    @contextlib.contextmanager
    def _shown(self, progress: RichProgress) -> Iterator[None]:
        """Draws `progress`, meanwhile not what was drawn before: rich before 14.1 draws one at a time."""
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
            # Of a full disk the next checkpoint will tell; no run ends for its log.
            if not self._log_failed:
                self._rich.print(f"notice: {self._log} cannot be written: {error}")
            self._log_failed = True


class Bar:
    """A progress bar under way."""

    def __init__(self, progress: RichProgress, task):
        self._progress, self._task = progress, task

    def set(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, steps: int, note: str = "") -> None:
        """`steps` more are done; `note` stands behind the bar."""
        self._progress.update(self._task, advance=steps, description=note)


def duration(seconds: float) -> str:
    """12:03 or 1:12:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def epoch_line(row: dict, epochs: int, eta_seconds: float, task: Task, monitor: Monitor) -> str:
    """Formats one finished epoch from its row of metrics.jsonl: the task's own monitor, and another one if that
    chooses the best epoch.
    """
    main = task.main()
    trained = row.get(f"train_{main.figure}")
    training = "" if trained is None else f"train {main.shown(trained, 1)}  "
    other = "" if monitor == main else f"{monitor.name} {monitor.shown(row[monitor.name], 1)}  "
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  {training}"
        f"val {main.shown(row[main.name], 1)}  {other}best {monitor.shown(row['best'], 1)}  "
        f"{row['train_images_per_s']:.0f} img/s  "
        f"eta {duration(eta_seconds)}"
    )


def epoch_note(progress: Progress, config: ConfigDict, steps_per_epoch: int, task: Task) -> str:
    """What stands behind the bar of an unfinished epoch with at least one step done: the epoch's figures so far.

    The first eta is the epoch's, without its validation; the second one the run's, with the validation of the epochs to
    come where one was seen.
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
        f"{images / max(seconds, 1e-9):.0f} img/s  eta {duration(left)}, run {duration(run_left)}"
    )


def speed_line(progress: Progress, config: ConfigDict, steps_per_epoch: int) -> str:
    """The time that training will take, from the steps of the first epoch so far, at least one."""
    epoch_s = steps_per_epoch * progress.epoch_seconds / progress.epoch_steps
    return (
        f"time       about {duration(epoch_s)} an epoch, {duration(config.epochs * epoch_s)} in all, validation not "
        f"counted (from the first {progress.epoch_steps} steps)"
    )
