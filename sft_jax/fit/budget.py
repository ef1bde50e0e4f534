"""How long a run takes, and what fits into a time: arithmetic on `Costs`."""

from collections.abc import Sequence
from typing import NamedTuple

from sft_jax.fit.costs import Costs

# Programs that pass over images and are compiled in a run: features of training and validation images, evaluation of
# validation and test images, and the report's outputs of both.
PASSES = 6
# Seconds to start the loop and loggers, and to save and log after an epoch.
BEGINNING, SAVING = 3.0, 1.0
# An epoch's time with the reports at new best epochs.
REPORTS = 1.05
# Fine-tuning at less than this part of the size at which there is time for the head alone is not worth it: of the
# flowers' validation and test images, fine-tuning at 128 px classified 75.9% and 76.9% correctly, the head alone at
# 224 px 77.1% and 75.4%, which is the same within the accuracy of 838 images.
WORTH = 0.55
# Of sizes within this part of the largest one, the one is taken that leaves little of the time: a part IDLE of it.
NEAR, IDLE = 0.85, 0.03


class Work(NamedTuple):
    """The amount of work in a run.

    Attributes:
      train, validation, test: numbers of images.
      batch: images per step.
      views: of each training image whose features are computed; 0 without.
      read: seconds to read the images.
    """

    train: int
    validation: int
    test: int
    batch: int
    views: int
    read: float

    def seconds(self, costs: Costs, epochs: int) -> float:
        """Returns the duration of a run with `epochs` epochs of the whole network, 0 for the head alone."""
        evaluated = self.views * self.train + self.validation  # features
        evaluated += 2 * self.validation + 2 * self.test  # evaluation and report
        fixed = self.read + costs.start + BEGINNING + PASSES * costs.evaluation_compile + evaluated * costs.image
        if not epochs:
            return fixed
        epoch = self.train // self.batch * costs.step + self.validation * costs.image + SAVING
        compilation = 0 if epochs == costs.kept else costs.compile
        return fixed + compilation + epochs * REPORTS * epoch

    def epochs(self, costs: Costs, seconds: float) -> int:
        """Returns how many epochs of the whole network fit into `seconds`; -1 if not even the head alone does."""
        if self.seconds(costs, 0) > seconds:
            return -1
        compiled = costs._replace(kept=0)
        one, two = self.seconds(compiled, 1), self.seconds(compiled, 2)
        fitting = int((seconds - one) / (two - one)) + 1 if one <= seconds else 0
        return costs.kept if costs.kept > fitting and self.seconds(costs, costs.kept) <= seconds else fitting


class Plan(NamedTuple):
    """What is to be done: the image size, and epochs of the whole network, 0 for the head alone."""

    size: int
    epochs: int


def planned(
    work: Work, costs: Costs, sizes: Sequence[int], seconds: float, *, fewest: int, most: int, head: bool
) -> Plan | None:
    """Returns the best plan that fits into `seconds`; None if none does.

    It trains everything at the largest size at which `fewest` epochs fit, for at most `most` epochs, unless the head
    alone can be trained at a much larger size, see `WORTH`.

    Args:
      work: the work.
      costs: measured at any size.
      sizes: image sizes to choose from, the largest first.
      seconds: the time.
      fewest, most: epochs of the whole network.
      head: whether training the head alone is possible.
    """
    epochs = {size: min(most, work.epochs(costs.at(size), seconds)) for size in sizes}
    full = next((size for size in sizes if epochs[size] >= fewest), None)
    alone = next((size for size in sizes if epochs[size] >= 0), None) if head else None
    if full is None or (alone is not None and full < WORTH * alone):
        return None if alone is None else Plan(alone, 0)

    def idle(size: int) -> float:
        return seconds - work.seconds(costs.at(size), epochs[size])

    if epochs[full] < most:
        near = [size for size in sizes if NEAR * full <= size <= full]
        full = next((size for size in near if idle(size) <= IDLE * seconds), min(near, key=idle))
    return Plan(full, epochs[full])
