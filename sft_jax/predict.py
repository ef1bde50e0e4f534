"""Classifies pictures: `python -m sft_jax.predict --workdir runs/cifar10 photo.jpg holiday/`."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.allocator import keep_freed_memory
from sft_jax.cache import keep_compiled_programs
from sft_jax.cli import make_parser
from sft_jax.errors import UserError, run_command

if TYPE_CHECKING:
    from sft_jax.classifier import Classifier

EXAMPLE = """example:
  python -m sft_jax.predict --workdir runs/cifar10 photo.jpg holiday/ --top 3
  find . -name '*.png' | python -m sft_jax.predict --workdir runs/cifar10 --json -

JPEG, PNG, WebP, GIF and BMP, turned as their EXIF data say. Files that cannot be read are named on standard error and
left out; the exit code is 2 then.
"""
PIPE_WIDTH = 10_000
HEADS = ("picture", "class", "sure", "next")

Answer = dict[str, Any]


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = make_parser("python -m sft_jax.predict", "Classifies pictures with a trained network.", EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help="folder of a run")
    source.add_argument("--weights", type=Path, metavar="FILE", help="a converted file or an export in place of a run")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file, a folder (with those below it), or - for paths on stdin"
    )
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="(default: %(default)s)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes a picture (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    return parser.parse_args(argv)


def main() -> None:
    """Predicts and prints, batch after batch."""
    args = parse(sys.argv[1:])
    if args.top < 1:
        raise UserError(f"--top {args.top} must be 1 or more")
    # After the flags, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.classifier import load
    from sft_jax.pictures import files

    classifier = load(args.workdir or args.weights, checkpoint=args.checkpoint)
    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        print(_printable(problem), file=sys.stderr)

    show = print_json if args.json else Table().show
    answered = 0
    for answers in predictions(classifier, files(args.images, tell), args.top, tell):
        show(answers)
        answered += len(answers)
    if problems:
        raise UserError(f"{len(problems)} named above could not be read; {answered} pictures were classified")


def predictions(
    classifier: "Classifier", paths: Iterable[Path], top: int, tell: Callable[[str], None]
) -> Iterator[list[Answer]]:
    """What `--json` prints of each picture, a list a batch. `tell` is called with a line about each unreadable one."""
    from sft_jax.classifier import BATCH
    from sft_jax.pictures import decoded

    readable = decoded(paths, classifier.preprocess.read, tell)
    while block := list(itertools.islice(readable, BATCH)):
        found = classifier.ranked(classifier.picture_logits([picture for _, picture in block]), top)
        labels, probabilities = (values.tolist() for values in found)
        yield [
            {
                "file": str(path),
                "label": names[0],
                "probability": shares[0],
                "top": [list(pair) for pair in zip(names, shares, strict=True)],
            }
            for (path, _), names, shares in zip(block, labels, probabilities, strict=True)
        ]


def print_json(answers: Iterable[Answer]) -> None:
    """One object a line."""
    for answer in answers:
        print(json.dumps(answer))
    sys.stdout.flush()


class Table:
    """A table that grows batch after batch; its head is printed once, and its columns never get narrower."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(markup=False, emoji=False, highlight=False)
        if not self._console.is_terminal:
            self._console.width = PIPE_WIDTH  # nothing is folded for want of room
        self._widths: dict[str, int] = {}

    def show(self, answers: Iterable[Answer]) -> None:
        """Prints further rows."""
        from rich.table import Table as RichTable
        from rich.text import Text

        rows = [_row(answer) for answer in answers]
        table = RichTable(box=None, show_header=not self._widths, pad_edge=False)
        for column, head in enumerate(HEADS):
            self._widths[head] = max(len(head), self._widths.get(head, 0), *(len(row[column]) for row in rows))
            room = min(self._widths[head], self._console.width // len(HEADS))
            table.add_column(head, justify="right" if head == "sure" else "left", overflow="fold", min_width=room)
        for row in rows:
            table.add_row(*map(Text, row))  # as they are: a file may be called [red]
        self._console.print(table)


def _row(answer: Answer) -> tuple[str, ...]:
    following = ", ".join(f"{label} {share:.1%}" for label, share in answer["top"][1:])
    return _printable(answer["file"]), answer["label"], f"{answer['probability']:.1%}", following


def _printable(name: str) -> str:
    """A file's name with a mark for each byte that is no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


if __name__ == "__main__":
    sys.exit(run_command(main))
