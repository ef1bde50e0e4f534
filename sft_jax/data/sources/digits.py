"""The handwritten digits bundled with scikit-learn: 1,797 real images of 8 x 8 pixels, no download.

Source: test set of UCI "Optical Recognition of Handwritten Digits", via `sklearn.datasets.load_digits`.
"""

import re

import numpy as np

from sft_jax.data.dataset import ArraySplit, Dataset
from sft_jax.data.sampling import stratified
from sft_jax.errors import UserError

# Independent of the run's seed, so that all runs share one test set.
SPLIT_SEED = 0
FRACTIONS = (0.6, 0.2, 0.2)


def load_digits(source: str) -> Dataset:
    """Loads the digits that `source` names, split 60 / 20 / 20 % per class into training, validation and test.

    Args:
      source: "digits" for all ten, "digits:5-9" for a range. Labels start at 0; class names are the digits.

    Raises:
      UserError: the range is invalid.
    """
    # scikit-learn takes a second to import, and only runs on digits need it.
    from sklearn.datasets import load_digits as load

    match = re.fullmatch(r"digits(?::(\d)-(\d))?", source)
    first, last = (int(match[1] or 0), int(match[2] or 9)) if match else (0, 0)
    if first >= last:
        raise UserError(f"config.data.source={source!r} must be digits or a range such as digits:5-9")
    pixels, digits = load(return_X_y=True)
    chosen = (digits >= first) & (digits <= last)
    # Intensities are in 0..16.
    gray = np.round(pixels[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    whole = ArraySplit.of_images(np.repeat(gray, 3, axis=-1), (digits[chosen] - first).astype(np.int32))
    train, validation, test = (whole.take(rows) for rows in stratified(whole.labels, FRACTIONS, SPLIT_SEED))
    return Dataset(train, validation, test, tuple(str(digit) for digit in range(first, last + 1)))
