"""Inspects a data set: `python -m sft_jax.inspect --data folder:flowers --output flowers.html`."""

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sft_jax.cli import (
    WITH_TEXTS,
    Overrides,
    add_checkpoint_flag,
    add_network_flags,
    add_source_flags,
    make_parser,
    parse_with_overrides,
    printable,
    source_settings,
)
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from ml_collections import ConfigDict

    from sft_jax.data.sources.pictures import Pictures
    from sft_jax.inference.predictor import Classifier
    from sft_jax.inference.texts import TextClassifier
    from sft_jax.inspect.examine import Measured
    from sft_jax.inspect.texts import Writings

    # Takes a list that receives notices, and a function to call with the number of examples done and of all.
    Measure = Callable[[list[str], Callable[[int, int], None]], Measured]

# The network without --workdir and --weights, for images and for texts.
USUAL, USUAL_OF_TEXTS = "package:efficientnet-lite0", "package:all-minilm-l6-v2"
EXAMPLE = """examples:
  python -m sft_jax.inspect --data folder:flowers --output flowers.html
  python -m sft_jax.inspect --workdir runs/scans --data csv:scans.csv --group patient --output scans.html
  python -m sft_jax.inspect --data folder:flowers --output flowers.html --apply good.csv
  python -m sft_jax.inspect --data text:reviews.csv --output reviews.html --apply good.csv

Writes a page with the suspected wrong labels, leaks between splits, duplicates, outliers and poor images or texts, and
beside it a table (flowers.csv) with columns file, issue (label, leak, duplicate, near_duplicate, outlier or quality),
score (the larger the more suspicious) and other (the more probable class, the other file, or what is wrong).
--apply writes a table of the data without unreadable images, exact duplicates, leaks and suspected labels, for
--config.data.source=csv:good.csv or, of texts, text:good.csv; of a leak, the example of the earlier split (train, val,
test) goes. No file is moved or removed.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the settings of the data."""
    parser = make_parser(
        "python -m sft_jax.inspect", "Finds wrong labels, copies, leaks and bad images or texts.", EXAMPLE
    )
    add_network_flags(parser, workdir="folder of the run whose network gives the features", required=False)
    add_checkpoint_flag(parser)
    add_source_flags(parser, WITH_TEXTS)
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="column of a table whose values, e.g. patients or authors, must not be in two splits",
    )
    parser.add_argument("--output", type=Path, metavar="PAGE.html", required=True, help="the page to write")
    parser.add_argument("--apply", type=Path, metavar="NEW.csv", help="write a table of the data without these faults")
    parser.add_argument(
        "--label-score",
        type=float,
        default=0.0,
        metavar="S",
        help="with --apply: keep suspected labels with a score below this, 0 to 1 (default: 0, none is kept)",
    )
    return parse_with_overrides(parser, argv)


def main() -> None:
    """Inspects the data and writes the page and the tables."""
    args, overrides = parse(sys.argv[1:])
    if args.output.suffix != ".html":
        raise UserError(f"--output {args.output} must end in .html")
    if args.apply is not None and args.apply.suffix != ".csv":
        raise UserError(f"--apply {args.apply} must end in .csv")
    if not 0 <= args.label_score <= 1 or (args.label_score and args.apply is None):
        raise UserError(f"--label-score {args.label_score:g} must be 0 to 1, and needs --apply NEW.csv")
    table = args.output.with_suffix(".csv")
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.inference.predictor import Classifier
    from sft_jax.inspect.examine import examine, imbalance, totals
    from sft_jax.inspect.page import inspection_page
    from sft_jax.inspect.table import apply, check_free, write_findings
    from sft_jax.run.console import Console
    from sft_jax.runtime.files import write_text

    console, notices = Console(), list[str]()
    config = source_settings(args.data, overrides, "inspection", WITH_TEXTS)
    check_free(table, args.apply, config.data.source)
    network, classifier = _network(args)
    examples: Pictures | Writings
    if isinstance(classifier, Classifier):
        examples, measure = _pictures(args, config, classifier, notices)
    else:
        examples, measure = _writings(args, config, classifier, notices)
    unit = examples.unit
    console.line(f"inspecting {len(examples):,} {unit}s of {printable(args.data)} with the features of {network}")
    with console.progress(args.data, 1) as bar:
        measured = measure(notices, bar.set)
    with console.status("comparing them"):
        findings = examine(examples, measured, notices)
    write_findings(table, findings, examples)
    write_text(args.output, inspection_page(args.data, network, table.name, examples, findings, notices))
    for notice in notices:
        console.line(f"notice: {printable(notice)}")
    console.line(printable(imbalance(examples)))
    console.line(", ".join(f"{issue} {count:,}" for issue, count in totals(findings).items()))
    console.line(f"wrote {args.output} and {table}")
    if args.apply is not None:
        console.line(apply(args.apply, findings, examples, args.label_score))


def _pictures(
    args: argparse.Namespace, config: "ConfigDict", classifier: "Classifier", notices: list[str]
) -> "tuple[Pictures, Measure]":
    """Reads the images; returns them and what measures them. Raises UserError."""
    from sft_jax.data.sources.known import check_of_images
    from sft_jax.data.sources.pictures import load_pictures
    from sft_jax.inspect.pictures import measure_pictures
    from sft_jax.run.folder import Run

    check_of_images(config)
    pictures = load_pictures(config.data, notices, split=args.split, group_key=args.group)
    if args.apply is not None and pictures.files is None:
        raise UserError(f"--apply writes a table of files, but {args.data} has none; use folder:PATH or csv:FILE")
    record = Run(args.workdir).dataset_record() if args.workdir else None
    if record is not None:
        pictures = pictures.divided_as(record, notices)
    return pictures, functools.partial(measure_pictures, classifier, pictures)


def _writings(
    args: argparse.Namespace, config: "ConfigDict", classifier: "TextClassifier", notices: list[str]
) -> "tuple[Writings, Measure]":
    """Reads the texts; returns them and what measures them. Raises UserError."""
    from sft_jax.inspect.texts import load_writings, measure_texts

    writings = load_writings(config, notices, args.split, args.group)
    return writings, functools.partial(measure_texts, classifier, writings)


def _network(args: argparse.Namespace) -> tuple[str, "Classifier | TextClassifier"]:
    """Returns the network that is named, or the usual one, after its name. Raises UserError if it is missing."""
    from sft_jax.inference.predictor import load
    from sft_jax.models.packages import package_of

    named, usual = args.workdir or args.weights, USUAL_OF_TEXTS if args.data.startswith("text:") else USUAL
    package = package_of(usual)
    if named is None and package.path() is None:
        raise UserError(
            f"name a pretrained network for the features: --workdir RUN, --weights FILE, or install {usual} with "
            f"{package.install()}"
        )
    return str(named or usual), load(named or usual, checkpoint=args.checkpoint, features_only=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
