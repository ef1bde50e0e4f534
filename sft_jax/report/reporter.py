"""A run's records while it goes on and at its end: metrics, logs, report.html and results.json."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sft_jax.data.loader import Feed
from sft_jax.report.page import report_page
from sft_jax.report.records import Records, Scored
from sft_jax.run.console import Console, epoch_line
from sft_jax.run.folder import Run
from sft_jax.run.loggers import Logs, reason
from sft_jax.run.progress import Progress
from sft_jax.runtime import processes
from sft_jax.runtime.files import write_json, write_rows, write_text
from sft_jax.tasks.classification import summarize, test_summary
from sft_jax.tasks.statistics import fit_temperature, is_unequal
from sft_jax.training.experiment import Task
from sft_jax.training.features import logits
from sft_jax.training.state import Arrays

# At most this share of a run's time goes into the reports of new bests, the first one aside.
REPORT_SHARE = 0.05


def records_of(run: Run, name: str) -> Records:
    """What `run` has written of itself; pages call it `name`. Raises UserError."""
    return Records(name, run.record(), run.rows(), run.results())


class Reports:
    """Writes report.html of `task` in the folder of `run`; the first process writes, all of them compute."""

    def __init__(self, task: Task, run: Run):
        self._task, self._run = task, run
        self._logits = logits(task.network, task.devices, task.preprocess, task.config.batch_size)

    def write(
        self,
        params: Arrays,
        batch_stats: Arrays,
        rows: list[dict[str, Any]],
        validation: Mapping[str, Any],
        results: Mapping[str, Any] | None = None,
        output: Path | None = None,
    ) -> Path:
        """Writes the page, of the test images where there are `results`, else of the validation images.

        Args:
          params: of the best epoch, on the devices.
          batch_stats: likewise.
          rows: of metrics.jsonl.
          validation: figures of the validation images, see `summarize`; not read where there are `results`.
          results: of results.json.
          output: where; default: report.html of the run.

        Returns:
          where the page is.
        """
        dataset, feed = self._task.dataset, self._task.validation_feed
        output = output or self._run.report_file
        on_validation = found = self._logits(params, batch_stats, feed)
        if results is not None:
            found = self._logits(params, batch_stats, Feed(dataset.test, self._task.devices))
        if not processes.is_first():
            return output
        temperature = fit_temperature(on_validation, feed.split.labels)
        if results is None:
            scored = Scored("validation", feed.split, validation, found)
        else:
            scored = Scored("test", dataset.test, test_summary(results), found)
        records = Records(self._run.folder.resolve().name, self._run.record(), rows, results)
        write_text(output, report_page(records, dataset.class_names, scored, temperature))
        return output

    def write_from_disk(self, output: Path | None = None) -> Path:
        """`write` of the run's best checkpoint. Raises UserError where there is none."""
        params, batch_stats = self._task.weights(self._run.restored("best").arrays)
        results, validation = self._run.results(), {}
        if results is None:
            validation = summarize(self._task.evaluate(params, batch_stats, self._task.validation_feed))
        return self.write(params, batch_stats, self._run.rows(), validation, results, output)


class Reporter:
    """Tells of a run what it has done. Nothing that goes wrong with a log or the report ends the run.

    Of several processes the first one tells; the others compute what it needs.

    Without `logs` there are no reports either: a benchmark wants neither.
    """

    def __init__(self, task: Task, run: Run, console: Console, logs: Logs | None):
        self._task, self._run, self._console, self._logs = task, run, console, logs
        self._reports = Reports(task, run)
        self._due = -np.inf

    def begin(self, progress: Progress) -> None:
        """The run starts, or goes on with the rows that it has."""
        if not processes.is_first():
            return
        write_rows(self._run.metrics_file, progress.rows)
        if self._logs:
            self._logs.begin(self._run.folder, self._run.record()["config"], progress.rows, self._console.line)

    def epoch(self, progress: Progress) -> None:
        """An epoch is done."""
        processes.in_first(lambda: write_rows(self._run.metrics_file, progress.rows))
        row = progress.rows[-1]
        if self._logs:
            self._logs.row(row)
        config = self._task.config
        left = (config.epochs - progress.epoch) * row["epoch_s"]
        self._console.line(epoch_line(row, config.epochs, left, config.monitor))

    def best(self, params: Arrays, batch_stats: Arrays, validation: Mapping[str, Any], progress: Progress) -> None:
        """These weights are the best so far: a report on the validation images, unless that would take long."""
        start = time.monotonic()
        (due,) = processes.largest(start >= self._due)
        if self._logs is None or not due:
            return
        self._try(lambda: self._reports.write(params, batch_stats, progress.rows, validation))
        cost = time.monotonic() - start
        self._due = time.monotonic() + cost / REPORT_SHARE

    def finish(
        self, params: Arrays, batch_stats: Arrays, figures: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """The run is done: its best weights, and their `figures` on the test split (see `test_results`).

        Returns:
          what is written to results.json, before anything of less worth is tried.
        """
        results = {**figures, **progress.outcome(self._task.config.monitor)}
        processes.in_first(lambda: write_json(self._run.results_file, results))
        if self._logs:
            self._logs.results(results)
            self._try(lambda: self._reports.write(params, batch_stats, progress.rows, {}, results))
        page = self._run.report_file if self._run.report_file.exists() else self._run.folder
        unequal = (
            f"balanced accuracy {results['test_balanced_accuracy']:.2%}, macro F1 {results['test_macro_f1']:.2%}, "
            if is_unequal(np.asarray(results["confusion"]))
            else ""
        )
        self._console.conclude(
            f"best epoch {progress.best_epoch}: test accuracy {results['test_accuracy']:.2%} "
            f"on {results['test_count']:,} images, {unequal}loss {results['test_loss']:.4f}; see {page}"
        )
        return results

    def _try(self, write: Callable[[], Path]) -> None:
        try:
            write()
        except Exception as error:
            self._console.line(
                f"notice: no report was written: {reason(error)}; to try again once the run is done: "
                f"python -m sft_jax.report --workdir {self._run.folder}"
            )
