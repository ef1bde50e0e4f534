"""Writes the report of a run: at new best epochs, at its end, and later from disk."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sft_jax.errors import reason
from sft_jax.report import classification, multilabel, regression, segmentation
from sft_jax.report.explaining import Explainer, check_explained
from sft_jax.report.page import plain_page
from sft_jax.report.records import Records, Scored
from sft_jax.report.texts import TextExplainer
from sft_jax.run.folder import Run
from sft_jax.run.progress import Progress
from sft_jax.runtime.files import write_text
from sft_jax.tasks import Task
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.multilabel import Multilabel
from sft_jax.tasks.regression import Regression
from sft_jax.tasks.segmentation import Segmentation
from sft_jax.tasks.text import TextClassification
from sft_jax.tasks.text_regression import TextRegression
from sft_jax.training.evaluator import predict_all
from sft_jax.training.experiment import Experiment
from sft_jax.training.observer import Observer
from sft_jax.training.phase_programs import Variables

# A task's page: (records, the task, the scored split, the validation split, which is the same without results).
PAGES: dict[type[Task], Callable[[Records, Any, Scored, Scored], str]] = {
    Classification: classification.page,
    Multilabel: multilabel.page,
    Regression: regression.page,
    TextClassification: classification.page,
    TextRegression: regression.page,
    Segmentation: segmentation.page,
}
# Maximum fraction of a run's time spent on reports at new best epochs, not counting the first one.
REPORT_FRACTION = 0.05


def records_of(run: Run, name: str) -> Records:
    """Reads the records of `run`, which reports call `name`. Raises UserError if they cannot be read."""
    return Records(name, run.record(), run.rows(), run.results())


class Reports:
    """Writes report.html of an experiment to the folder of `run`. All processes compute, the primary one writes."""

    def __init__(self, experiment: Experiment, run: Run):
        self._experiment, self._run = experiment, run
        if experiment.task.dense:
            self._outputs = segmentation.masks_of(experiment)
        else:
            self._outputs = predict_all(experiment.network, [experiment.preprocess], experiment.config.batch_size)

    def write(
        self,
        weights: Variables,
        rows: list[dict[str, Any]],
        validation: Mapping[str, Any],
        results: Mapping[str, Any] | None = None,
        output: Path | None = None,
        *,
        explain: bool = True,
    ) -> Path:
        """Writes the report, on the test split if there are `results`, otherwise on the validation split.

        Args:
          weights: weights of the best epoch, on the devices.
          rows: rows of metrics.jsonl.
          validation: validation metrics, see `Task.summarize`; ignored if there are `results`.
          results: contents of results.json.
          output: output file, by default report.html of the run.
          explain: whether to show what `report.explain` asks for, which may take longer than all the rest.

        Returns:
          the output file.
        """
        output = output or self._run.report_file
        name = self._run.folder.resolve().name
        records = Records(name, self._run.record(), rows, results)
        make = PAGES.get(type(self._experiment.task))
        explain &= self._experiment.config.report.explain and self._run.writable
        page = (
            self._plain_page(records, validation)
            if make is None
            else self._page(make, weights, records, validation, explain=explain)
        )
        if self._run.writable:
            write_text(output, page)
        return output

    def _page(
        self,
        make: Callable[..., str],
        weights: Variables,
        records: Records,
        validation: Mapping[str, Any],
        *,
        explain: bool,
    ) -> str:
        experiment = self._experiment
        loader, task = experiment.validation_loader, experiment.task
        kind = Explainer if experiment.dataset.reading is None else TextExplainer
        explainer = kind(experiment, weights) if explain else None
        if task.dense:  # outputs of whole splits would not fit into memory
            loader = experiment.loader(segmentation.looked_at(loader.split, experiment.config.data.size))
        outputs = self._outputs(*weights, loader)
        scored = on_validation = Scored("validation", loader.split, validation, outputs, explainer)
        if records.results is not None:
            split = experiment.dataset.test
            if task.dense:
                split = segmentation.looked_at(split, experiment.config.data.size)
            test = experiment.loader(split)
            figures = task.figures_of(records.results)
            scored = Scored("test", test.split, figures, self._outputs(*weights, test), explainer)
        return make(records, task, scored, on_validation) if self._run.writable else ""

    def _plain_page(self, records: Records, validation: Mapping[str, Any]) -> str:
        dataset, nothing = self._experiment.dataset, np.zeros(0, np.float32)
        if records.results is None:
            return plain_page(records, Scored("validation", dataset.validation, validation, nothing))
        figures = self._experiment.task.figures_of(records.results)
        return plain_page(records, Scored("test", dataset.test, figures, nothing))

    def write_from_disk(self, output: Path | None = None) -> Path:
        """Calls `write` for the run's best checkpoint. Raises UserError if there is none."""
        best = self._run.restored("best")
        experiment = self._experiment = self._experiment.as_learnt(Progress.from_json(best.metadata["progress"]).learnt)
        weights = Variables(*experiment.weights(best.arrays))
        results, validation = self._run.results(), {}
        if results is None:
            validation = experiment.task.summarize(experiment.evaluate(*weights, experiment.validation_loader))
        return self.write(weights, self._run.rows(), validation, results, output)


class Reporter(Observer):
    """Writes the report at the end of a run and, if that is fast enough, at new best epochs; it never fails the run.

    Only the report of the end has what `report.explain` asks for.

    Raises:
      UserError: `config` asks for heat maps, and there are none of its task or network.
    """

    _reports: Reports

    def __init__(self, config: ConfigDict):
        check_explained(config)

    def begin(self, experiment: Experiment, run: Run, progress: Progress, say: Callable[[str], None]) -> None:
        """See `Observer`."""
        self._reports, self._run, self._say = Reports(experiment, run), run, say
        self._agreed = experiment.devices.largest
        self._due = -np.inf

    def best(self, weights: Variables, figures: Mapping[str, Any], progress: Progress) -> None:
        """See `Observer`."""
        start = time.monotonic()
        if not self._agreed(start >= self._due):
            return
        self._try(lambda: self._reports.write(weights, progress.rows, figures, explain=False))
        cost = time.monotonic() - start
        self._due = time.monotonic() + cost / REPORT_FRACTION

    def end(self, weights: Variables, results: Mapping[str, Any], progress: Progress) -> None:
        """See `Observer`."""
        self._try(lambda: self._reports.write(weights, progress.rows, {}, results))

    def _try(self, write: Callable[[], Path]) -> None:
        try:
            write()
        except Exception as error:
            self._say(
                f"notice: the report could not be written: {reason(error)}; after the run, try "
                f"python -m sft_jax.report --workdir {self._run.folder}"
            )
