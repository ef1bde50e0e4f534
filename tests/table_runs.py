"""Tables of small images with several labels or a number each, and runs on them."""

import csv

import numpy as np
from PIL import Image
from tiny_runs import run

LABELS = ("blue", "green", "red")
SIZE = 16


def picture(seed, shares):
    """Returns noise whose channels have these brightnesses, of red, green and blue in 0..1."""
    noise = np.random.default_rng(seed).integers(0, 60, (SIZE, SIZE, 3))
    return Image.fromarray((noise + 190 * np.array(shares)).astype(np.uint8))


def several(folder, count=140, *, columns=False, separator=";"):
    """Writes `count` images and a table: an image has the label of a colour if that channel is bright, mostly."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["file", *LABELS] if columns else ["file", "labels"]]
    for index in range(count):
        generator = np.random.default_rng([index, 1])
        bits = generator.integers(0, 2, 3)
        picture(index, 0.35 * bits + generator.uniform(0, 0.65, 3)).save(folder / f"{index:03}.png")
        own = dict(zip(("red", "green", "blue"), bits.tolist(), strict=True))
        marks = [own[name] for name in LABELS]
        rows.append([f"{index:03}.png", *marks] if columns else [f"{index:03}.png", separator.join(_on(own))])
    return _table(folder / "several.csv", rows)


def numbers(folder, count=140, scale=40.0, shift=100.0):
    """Writes `count` images and a table: the number is the brightness, times `scale` plus `shift`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["file", "age"]]
    for index in range(count):
        bright = float(np.random.default_rng([index, 2]).uniform())
        picture(index, (bright,) * 3).save(folder / f"{index:03}.png")
        rows.append([f"{index:03}.png", f"{scale * bright + shift:.4f}"])
    return _table(folder / "numbers.csv", rows)


def _on(own):
    return sorted(name for name, bit in own.items() if bit)


def _table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def run_on(table, folder, task, **changes):
    """Trains the network "tiny" on a table; returns results.json."""
    settings = {"epochs": 3, "batch_size": 16, "limit_train_examples": None, "limit_eval_examples": None}
    settings["optimizer__learning_rate"] = 0.005
    return run(folder, **{"task": task, "data__source": f"csv:{table}", **settings, **changes})
