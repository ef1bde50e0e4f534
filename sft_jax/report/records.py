"""The data of a report: the files of a run, and the outputs of its network for a split."""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from sft_jax.config import complete, flatten
from sft_jax.data.dataset import Split
from sft_jax.inference.spans import Span, plain
from sft_jax.report.explaining import Explainer
from sft_jax.report.pictures import data_uris
from sft_jax.report.texts import TextExplainer
from sft_jax.tasks import Task, task_class


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split with the network's outputs and metrics.

    Attributes:
      name: "test" or "validation".
      split: the images and labels.
      summary: metrics as returned by `Task.summarize`.
      outputs: the network's outputs, float32 [n, ...]; logits [n, classes] for a classifier.
      explainer: draws heat maps, or weighs the tokens of texts; None for a report without.
    """

    name: str
    split: Split
    summary: Mapping[str, Any]
    outputs: np.ndarray
    explainer: Explainer | TextExplainer | None = None

    def uris(self, rows: Sequence[int]) -> Mapping[int, str]:
        """Returns `data_uris` of these images; empty strings for texts."""
        return data_uris(self.split, rows) if self.split.texts is None else dict.fromkeys(rows, "")

    def heat(self, places: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], str]:
        """Returns `Explainer.uris` of these images and outputs, empty strings without an explainer."""
        if isinstance(self.explainer, Explainer):
            return self.explainer.uris(self.split, places)
        return dict.fromkeys(places, "")

    def spans(self, places: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], tuple[Span, ...]]:
        """Returns these texts in parts, weighed by what they contribute to these outputs if there is an explainer.

        Of images they are empty.
        """
        if self.split.texts is None:
            return dict.fromkeys(places, ())
        wanted = list(dict.fromkeys(places))
        texts = [self.split.texts[row] for row, _ in wanted]
        if isinstance(self.explainer, TextExplainer):
            return dict(zip(wanted, self.explainer.spans(texts, [output for _, output in wanted]), strict=True))
        return dict(zip(wanted, map(plain, texts), strict=True))

    @property
    def unit(self) -> str:
        """What an example is called."""
        return "image" if self.split.texts is None else "text"

    def file(self, row: int) -> str:
        """Returns the name of an image's file; empty if it is none."""
        return "" if self.split.names is None else self.split.names[row]

    def called(self, row: int) -> str:
        """Returns what to call an example: its file, or its place in the split."""
        return self.file(row) or f"{self.name} {self.unit} {row}"


@dataclasses.dataclass(frozen=True)
class Records:
    """The files of a run.

    Attributes:
      name: name of its folder.
      record: config.json.
      rows: metrics.jsonl.
      results: results.json, None before the run is finished.
    """

    name: str
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None

    @property
    def task(self) -> type[Task]:
        """The task of the run."""
        return task_class(complete(flatten(self.record["config"])))

    @property
    def best_row(self) -> Mapping[str, Any] | None:
        """The row of the best epoch: the first with the best value of the monitored metric; None if there is none."""
        kept = self.rows[-1]["best"] if self.rows else None
        return None if kept is None else next(row for row in self.rows if row["best"] == kept)

    @property
    def command(self) -> str:
        """The command line as typed, with one flag per line."""
        program, *flags = [str(word) for word in self.record.get("command") or ["?"]]
        module = ".".join(PurePath(program).with_suffix("").parts[-2:])
        start = ["python", "-m", module] if module.startswith("sft_jax.") else [program]
        breaks = [index for index, word in enumerate(flags) if word.startswith("-")]
        lines = [start + flags[: breaks[0]]] if breaks else [start + flags]
        lines += [flags[first:last] for first, last in itertools.pairwise([*breaks, len(flags)])]
        return " \\\n    ".join(map(shlex.join, lines))
