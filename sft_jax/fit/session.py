"""Settles a run for a time: looks at the data, chooses weights and settings, measures, and plans."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sft_jax import models
from sft_jax.config import complete
from sft_jax.config.schema import KEYS
from sft_jax.data import Dataset
from sft_jax.errors import UserError
from sft_jax.fit import choices as choose
from sft_jax.fit.audition import ranked, sampled
from sft_jax.fit.budget import WORTH, Plan, Work, planned
from sft_jax.fit.choices import Choices
from sft_jax.fit.costs import Costs, Meter
from sft_jax.fit.sight import Sight, look_at, splits_of
from sft_jax.fit.weights import Candidate, candidates
from sft_jax.run.console import Console, duration
from sft_jax.runtime.devices import Devices
from sft_jax.tasks import task_class, task_named
from sft_jax.training.start import read_dataset

# Settings that follow from the time, or would make the plan of it wrong.
SETTLED = ("epochs", "finetune.method", "finetune.head_epochs", "data.size_schedule", "compare_with_scratch")
# Part of the time that is planned with, because estimates err.
USED = 0.97
# Measurements of training at most, and how far from the measured size, relative to it, no other is needed.
MEASUREMENTS, NEARBY = 2, 0.1
# Minutes from which on several weights are compared, part of the time for it, and the size in pixels for it.
COMPARED_FROM, COMPARING, COMPARED_AT = 10, 0.15, 128


@dataclasses.dataclass(frozen=True)
class Settled:
    """A run that was settled.

    Attributes:
      config: its configuration.
      lines: (topic, text) pairs about what was chosen and why.
      seconds: what it is expected to take from now on.
    """

    config: ConfigDict
    lines: list[tuple[str, str]]
    seconds: float


class Session:
    """Settles a run of the data `source` for `minutes` from the time `began`, of `time.perf_counter`.

    Args:
      source: the `data.source`.
      given: settings by the user, by config key.
      minutes: the time for everything, what has passed since `began` included.
      began: see above.
      weights: see `candidates`.
      console: receives lines.

    Raises:
      UserError: a setting cannot be given.
    """

    def __init__(
        self,
        source: str,
        given: Mapping[str, Any],
        minutes: float,
        began: float,
        weights: Path | None,
        console: Console,
    ):
        for key in SETTLED:
            if key in given:
                raise UserError(f"config.{key} follows from --minutes; set it in the recipe that this command writes")
        if "data.source" in given:
            raise UserError("PATH already names the data; leave out --config.data.source")
        task = task_named(given.get("task", KEYS["task"].default))
        if task.dense or task.unit != "image":
            recipe = "camvid" if task.dense else "messages"
            raise UserError(
                f"config.task={given['task']}: this command is for whole images, of which it settles classes, labels "
                f"or a number; start from a recipe, such as configs/{recipe}.py"
            )
        if weights is not None and "init" in given:
            raise UserError("--weights and --config.init both name the weights to start from; give one of them")
        self._choices = Choices(given)
        self._choices.set("data", "", {"data.source": source})
        self._minutes, self._began, self._console = minutes, began, console
        self._scratch = given.get("init") == "scratch"
        self._weights = Path(given["init"]) if "init" in given and not self._scratch else weights
        self._devices = Devices()

    def settle(self) -> Settled:
        """Settles everything. Raises UserError if the data, the weights or the time are of no use."""
        choices, notices = self._choices, list[str]()
        usable: list[Candidate | None] = [None]
        if not self._scratch:
            usable = list(candidates(self._weights, notices))
        choices.set("splits", "", splits_of(self._config(), choices.values))
        sight = look_at(self._config(), self._console)
        for line in (*notices, *sight.lines):
            self._console.line(f"notice     {line}")
        task = task_class(self._config())
        choose.choose_fit(choices, sight, task)
        choose.choose_batch(choices, sight, self._devices.count)
        choose.choose_optimizer(choices, task)
        if choices.values["data.source"].startswith("digits"):
            choices.set("flips", "none, a mirrored digit is no digit", {"data.flip": False})
        self._use(usable[0], "the only ones there are")
        choose.choose_size(choices, self._sizes(usable[0], sight)[0], "to begin with")
        began = time.perf_counter()
        dataset = read_dataset(self._config(), self._console)
        read = time.perf_counter() - began
        meter = Meter(dataset, self._devices)
        minimum = math.inf
        for candidate, reason in self._ranked(usable, sight, dataset):
            self._use(candidate, reason)
            settled, seconds = self._planned(candidate, sight, meter, read)
            if settled is not None:
                return settled
            minimum = min(minimum, seconds)
        raise UserError(
            f"--minutes {self._minutes:g} is too little: looking, measuring and the shortest run take about "
            f"{duration(minimum)} minutes here; use --minutes {math.ceil(10 * minimum / USED / 60) / 10:g} or more"
        )

    def _planned(
        self, candidate: Candidate | None, sight: Sight, meter: Meter, read: float
    ) -> tuple[Settled | None, float]:
        """Measures, and settles size and epochs for a candidate.

        Returns:
          the run, None if there is no time for any, and the seconds that the shortest needs, what has passed included.
        """
        choices, few = self._choices, choose.few_per_class(sight)
        sizes = self._sizes(candidate, sight)
        most = choose.MOST if few is None or self._scratch else 0
        self._method(sizes[0], min(choose.FEWEST, most), "to begin with")
        costs = meter.evaluation(self._config())
        self._console.line(f"measured   {costs}")

        def plan(costs: Costs) -> Plan | None:
            work, head = self._work(sight, read), not self._scratch
            return planned(work, costs, sizes, self._left(), fewest=choose.FEWEST, most=most, head=head)

        for _ in range(MEASUREMENTS):
            found = plan(costs)
            if found is None or not found.epochs or (not costs.is_guess and _near(found.size, costs.size)):
                break
            self._method(found.size, found.epochs, "to begin with")
            costs, batch = meter.training(self._config(), costs)
            self._console.line(f"measured   {costs}")
            if batch < self._config().batch_size:
                choices.set("batch", f"{batch} images, the most that fits into memory", {"batch_size": batch})
        found = plan(costs)
        if found is None:
            least = self._work(sight, read).seconds(costs.at(sizes[-1]), choose.FEWEST if self._scratch else 0)
            return None, time.perf_counter() - self._began + least
        work, costs = self._work(sight, read), costs.at(found.size)
        seconds = work.seconds(costs, found.epochs)
        self._method(found.size, found.epochs, self._why(found, costs, work, sizes, few), sizes)
        return Settled(self._config(), choices.lines, seconds), 0.0

    def _why(self, plan: Plan, costs: Costs, work: Work, sizes: Sequence[int], few: int | None) -> str:
        """Returns why so many epochs are trained."""
        if few is not None and not self._scratch:
            return f"with about {few} images per class, training more was never better (README, Transfer methods)"
        if not plan.epochs:
            size = next(size for size in reversed(sizes) if size >= WORTH * plan.size)
            least = (time.perf_counter() - self._began + work.seconds(costs.at(size), choose.FEWEST)) / USED
            return (
                f"there is no time for {choose.FEWEST} epochs of everything at {size} px or more, and with less it "
                f"would be worse; they take about {duration(least)} minutes in all"
            )
        steps = f"a step takes {1e3 * costs.step:.0f} ms as measured, an epoch has {work.train // work.batch}"
        return f"{steps}; more were of no use" if plan.epochs == choose.MOST else steps

    def _method(self, size: int, epochs: int, why: str, sizes: Sequence[int] = ()) -> None:
        choose.choose_size(self._choices, size, _why_size(size, sizes))
        choose.choose_method(self._choices, epochs, why, scratch=self._scratch)

    def _use(self, candidate: Candidate | None, why: str) -> None:
        if candidate is not None:
            choose.choose_weights(self._choices, candidate, why)

    def _sizes(self, candidate: Candidate | None, sight: Sight) -> list[int]:
        if self._choices.gives("data.size"):
            return [self._choices.values["data.size"]]
        architecture = models.architecture(self._config().model.name)
        usual = architecture.pretrained.size if candidate is None else candidate.preprocess.size
        return choose.sizes_for(architecture, usual, sight)

    def _ranked(
        self, usable: Sequence[Candidate | None], sight: Sight, dataset: Dataset
    ) -> list[tuple[Candidate | None, str]]:
        """Returns the candidates with the reasons for them, the best first."""
        if len(usable) == 1:
            return [(usable[0], "as you say" if self._weights else "the only ones there are")]
        if self._minutes < COMPARED_FROM:
            others = ", ".join(map(str, usable[1:]))
            return [(usable[0], f"not compared with {others}, for which there is time from {COMPARED_FROM} minutes on")]

        def config_of(candidate: Candidate) -> ConfigDict:
            self._use(candidate, "to compare")
            sizes = self._sizes(candidate, sight)
            size = next((size for size in sizes if size <= COMPARED_AT), sizes[-1])
            self._method(size, 0, "to compare")
            return self._config()

        named = [candidate for candidate in usable if candidate is not None]
        meter = Meter(sampled(dataset), self._devices)
        return [*ranked(named, config_of, meter, COMPARING * 60 * self._minutes, self._console)]

    def _work(self, sight: Sight, read: float) -> Work:
        config, counts = self._config(), sight.counts
        views = 0 if self._scratch else 1 + config.data.flip
        return Work(counts["train"], counts["val"], counts["test"], config.batch_size, views, read)

    def _left(self) -> float:
        return USED * 60 * self._minutes - (time.perf_counter() - self._began)

    def _config(self) -> ConfigDict:
        return complete(self._choices.values)


def _near(size: int, measured: int) -> bool:
    return abs(size - measured) <= NEARBY * measured


def _why_size(size: int, sizes: Sequence[int]) -> str:
    if size == max(sizes, default=size):
        return "the largest of use, by the images' own size and that of the weights"
    return f"the largest with time for the method, of up to {max(sizes)}"
