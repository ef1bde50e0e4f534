"""Creates folders of small pictures with masks: squares and discs of plain colours on a noisy ground."""

import numpy as np
from PIL import Image

NAMES = ("ground", "square", "disc")
COLOURS = np.array([(90, 90, 90), (220, 40, 40), (40, 60, 230)])
VOID = 200  # as the files mark pixels of no class


def pictured(seed, width=24, height=20):
    """Returns a picture uint8 [height, width, 3] and its mask uint8 [height, width] of values 0, 1, 2 and `VOID`."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    top, left = generator.integers(0, height - 8), generator.integers(0, width - 8)
    mask[top : top + 8, left : left + 8] = 1
    row, column = generator.integers(5, height - 5), generator.integers(5, width - 5)
    mask[(rows - row) ** 2 + (columns - column) ** 2 < 20] = 2
    picture = COLOURS[mask] + generator.integers(-25, 26, (height, width, 3))
    mask[0] = VOID
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def fill(folder, count, start=0, **sizes):
    """Writes `count` pictures and masks, all distinct, to the folders `images` and `masks`."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, mask = pictured(start + number, **sizes)
        Image.fromarray(picture).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def parts(root, train=24, val=8, test=9):
    """Writes the three splits, and the names of the classes."""
    for start, (part, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        fill(root / part, count, 1000 * start)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root
