"""Pictures that are small, long, dark, bright, blank or blurred."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sft_jax.inspect.finding import UNREADABLE, Finding
from sft_jax.inspect.looks import Look

# Shorter side in pixels, also relative to the median of the set.
SMALL, SMALL_SHARE = 32, 0.25
# The thresholds of the package cleanvision 0.3: aspect ratio, and brightness of nearly all pixels.
LONG, DARK, BRIGHT = 0.35, 0.32, 0.95
# Difference between the brightest and the darkest pixels.
BLANK = 0.1
# Sharpness below which a picture is blurred, also relative to the median of the set.
BLURRED, BLURRED_SHARE = 0.1, 0.4
# Of a fault of more pictures than this, the set is said to have it, and they are not listed.
MOST = 0.5

# For all pictures: how bad each is, 0 to 1, and 0 if it is not; and what to say of it.
Judged = tuple[np.ndarray, Callable[[Look], str]]


def poor(looks: Mapping[int, Look], problems: Mapping[int, str], notices: list[str]) -> list[Finding]:
    """Finds pictures of poor quality.

    Args:
      looks: row -> measures of the readable pictures.
      problems: row -> why it is not readable.
      notices: receives a line about each fault that most pictures have, which are then not listed for it.
    """
    found = [Finding(row, "quality", 1.0, f"{UNREADABLE}: {why}") for row, why in problems.items()]
    blank = np.zeros(len(looks), bool)
    for kind, (badness, words) in _judged(list(looks.values())).items():
        bad = badness > 0
        if kind == "blank":
            blank = bad
        elif kind in ("dark", "bright", "blurred"):
            bad &= ~blank  # said already
        if of_the_set(int(bad.sum()), len(looks), f"images are {kind}", notices):
            continue
        found += [
            Finding(row, "quality", float(badness[place]), f"{kind}: {words(one)}")
            for place, (row, one) in enumerate(looks.items())
            if bad[place]
        ]
    return found


def of_the_set(count: int, total: int, said: str, notices: list[str]) -> bool:
    """Returns whether most of `total` examples have a fault, that `said`; `notices` then receives a line."""
    most = count > MOST * total
    if most:
        notices.append(f"{count:,} of {total:,} {said}: taken for a property of the set, not listed")
    return most


def is_blank(look: Look) -> bool:
    """Returns whether nothing can be seen on the picture."""
    return look.high - look.low < BLANK


def _judged(looks: Sequence[Look]) -> dict[str, Judged]:
    sides = np.array([min(one.width, one.height) for one in looks])
    least = max(SMALL, SMALL_SHARE * float(np.median(sides)))
    ratios = np.array([min(one.width, one.height) / max(one.width, one.height) for one in looks])
    low, dark, high = np.array([(one.low, one.dark, one.high) for one in looks]).T
    sharp = np.array([one.sharpness for one in looks])
    soft = min(BLURRED, BLURRED_SHARE * float(np.median(sharp)))
    blank = np.array([is_blank(one) for one in looks])
    return {
        "small": (np.maximum(1 - sides / least, 0), lambda one: f"{one.width} x {one.height} pixels"),
        "long": (np.where(ratios < LONG, 1 - ratios, 0), lambda one: f"{one.width} x {one.height} pixels"),
        "blank": (np.where(blank, 1 - (high - low), 0), lambda one: f"brightness {one.low:.2f} to {one.high:.2f}"),
        "dark": (np.where(high < DARK, 1 - high, 0), lambda one: f"99% of the pixels below {one.high:.2f}"),
        "bright": (np.where(dark > BRIGHT, dark, 0), lambda one: f"95% of the pixels above {one.dark:.2f}"),
        "blurred": (np.maximum(1 - sharp / soft, 0), lambda one: f"sharpness {one.sharpness:.3f}, limit {soft:.3f}"),
    }
