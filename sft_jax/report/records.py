"""What a page is made of: what a run has written of itself, and what its network says of a split."""

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from sft_jax.config import complete, flatten
from sft_jax.data.dataset import Split
from sft_jax.tasks import Task, task_class


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split and what the network says of it.

    Attributes:
      name: "test" or "validation".
      split: the images and labels.
      summary: its figures as `Task.summarize` returns them.
      outputs: of the network, float32 [n, ...]; logits [n, classes] of a classifier.
    """

    name: str
    split: Split
    summary: Mapping[str, Any]
    outputs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run has written of itself.

    Attributes:
      name: of its folder.
      record: config.json.
      rows: metrics.jsonl.
      results: results.json, None before the end.
    """

    name: str
    record: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any] | None

    @property
    def task(self) -> type[Task]:
        """What was learnt."""
        return task_class(complete(flatten(self.record["config"])))

    @property
    def best_row(self) -> Mapping[str, Any] | None:
        """The epoch that was kept: the first with the best value of what was monitored; None before there is one."""
        kept = self.rows[-1]["best"] if self.rows else None
        return None if kept is None else next(row for row in self.rows if row["best"] == kept)

    @property
    def command(self) -> str:
        """The command line, as it is typed, a flag a line."""
        program, *flags = [str(word) for word in self.record.get("command") or ["?"]]
        module = ".".join(PurePath(program).with_suffix("").parts[-2:])
        start = ["python", "-m", module] if module.startswith("sft_jax.") else [program]
        breaks = [index for index, word in enumerate(flags) if word.startswith("-")]
        lines = [start + flags[: breaks[0]]] if breaks else [start + flags]
        lines += [flags[first:last] for first, last in itertools.pairwise([*breaks, len(flags)])]
        return " \\\n    ".join(map(shlex.join, lines))
