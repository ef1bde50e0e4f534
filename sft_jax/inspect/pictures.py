"""What is measured of images: features, quality, and which are copies."""

import functools
from collections.abc import Callable

from sft_jax.data.sources.pictures import Pictures
from sft_jax.inference.embedding import embed
from sft_jax.inference.predictor import Classifier
from sft_jax.inspect.copies import pairs
from sft_jax.inspect.examine import Measured
from sft_jax.inspect.looks import look
from sft_jax.inspect.quality import poor


def measure_pictures(
    classifier: Classifier, pictures: Pictures, notices: list[str], after: Callable[[int, int], None]
) -> Measured:
    """Measures all images with the features of `classifier`; see `embed` for `after` and the errors.

    `notices` receives a line about each file that is odd, and each fault that most images have.
    """
    embedded = embed(classifier, pictures, look, after)
    notices += embedded.warnings
    looks = dict(zip(embedded.rows.tolist(), embedded.seen, strict=True))
    faults = poor(looks, embedded.problems, notices)
    return Measured(embedded.rows, embedded.features, faults, functools.partial(pairs, embedded.seen))
