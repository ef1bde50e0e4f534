"""Predicts what images show or texts say: `python -m sft_jax.predict --workdir runs/cifar10 photo.jpg holiday/`."""

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_jax.cli import add_checkpoint_flag, add_view_flags, check_view_flags, make_parser, printable
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

if TYPE_CHECKING:
    from sft_jax.inference.predictor import Classifier
    from sft_jax.inference.texts import TextClassifier

EXAMPLE = """example:
  python -m sft_jax.predict --workdir runs/cifar10 photo.jpg holiday/ --top 3
  find . -name '*.png' | python -m sft_jax.predict --workdir runs/cifar10 --json -
  python -m sft_jax.predict --workdir runs/cifar10 holiday/ --output holiday.csv
  python -m sft_jax.predict --workdir runs/cifar10 holiday/ --explain why/
  python -m sft_jax.predict --workdir runs/sst2 --text 'a film to remember' reviews.csv --explain why/

Reads JPEG, PNG, TIFF, WebP, AVIF, GIF, BMP and all other formats of Pillow, and HEIC if pillow-heif is installed; EXIF
orientation is applied. Unreadable files are reported on standard error and skipped; the exit code is then 2.

A network of texts reads .txt files, one text a line, and the column of texts of .csv, .tsv, .jsonl, .json and .parquet
files, or what --text gives.
"""
Answer = dict[str, Any]


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "python -m sft_jax.predict", "Predicts classes, labels or a number with a trained network.", EXAMPLE
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help="folder of a run")
    source.add_argument("--weights", type=Path, metavar="FILE", help="a converted file or an export, instead of a run")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="IMAGE",
        help="a file, a folder (searched recursively), hf:PATH, or - for paths on stdin; of texts a file, or - for one "
        "text a line on stdin",
    )
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="a text itself (repeatable)")
    parser.add_argument("--columns", metavar="NAME", help="column of the texts, or two for pairs: 'NAME;NAME'")
    add_checkpoint_flag(parser)
    parser.add_argument(
        "--top", type=int, metavar="N", help="classes per image (default: 5), or labels of --json (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.csv|FOLDER",
        help="write a table with columns file, label, probability, label_2, probability_2, ...; for several labels per "
        "image file, labels and the probability of each label; for a number file, value; for a class per pixel, name "
        "the folder for masks and overlays",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="reject images with more pixels, which may be decompression bombs (default: that of data.max_pixels)",
    )
    parser.add_argument(
        "--explain",
        type=Path,
        metavar="FOLDER",
        help="also write each image with a heat map of the parts that its prediction depends on (Grad-CAM; attention "
        "rollout for vision transformers), or pages of the texts with what words contribute (integrated gradients)",
    )
    add_view_flags(parser)
    args = parser.parse_args(argv)
    if not args.inputs and not args.text:
        parser.error("nothing to predict: name images, or give a network of texts a file or --text TEXT")
    if args.json and args.output is not None and args.output.suffix:
        parser.error("argument --output: not allowed with argument --json")
    return args


def main() -> None:
    """Predicts and prints the predictions batch by batch."""
    args = parse(sys.argv[1:])
    if args.top is not None and args.top < 1:
        raise UserError(f"--top {args.top} must be 1 or more")
    if args.output is not None and args.output.suffix not in (".csv", ""):
        raise UserError(f"--output {args.output} must end in .csv")
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.data.images.formats import MAX_PIXELS, FileWarnings
    from sft_jax.inference import masks
    from sft_jax.inference.predictor import Classifier, load
    from sft_jax.inference.tables import CsvTable, Table, print_json
    from sft_jax.inference.windows import View

    classifier = load(args.workdir or args.weights, checkpoint=args.checkpoint)
    classifier.decoder.check(args.top)
    _check_output(classifier, args)
    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        print(printable(problem), file=sys.stderr)

    answered, unit = 0, classifier.task.unit
    with contextlib.ExitStack() as opened, FileWarnings() as warned:
        if args.output is not None and not classifier.task.dense:
            table = CsvTable(args.output, classifier.decoder, args.top, of_texts=unit == "text")
            show = opened.enter_context(contextlib.closing(table)).show
        else:
            show = print_json if args.json else Table(classifier.decoder, unit).show
        if isinstance(classifier, Classifier):
            if args.text or args.columns:
                raise UserError(f"--text and --columns are for networks of texts, but {_network(args)} takes images")
            paths = (path for name in args.inputs for path in _files(name, tell))
            limit = args.max_pixels or MAX_PIXELS
            if classifier.task.dense:
                view = View(args.windows, flips=args.flips)
                blocks = masks.answers(classifier, paths, args.output, tell, limit, view)
            else:
                blocks = predictions(classifier, paths, args.top, tell, limit, args.explain)
        else:
            if args.max_pixels:
                raise UserError(f"--max-pixels is for networks of images, but {_network(args)} takes texts")
            blocks = _of_texts(classifier, args, tell)
        for answers in blocks:
            show(answers)
            answered += len(answers)
    for line in warned.lines:
        print(f"notice: {printable(line)}", file=sys.stderr)
    if args.output is not None and not args.json:
        print(f"wrote {args.output}: {answered:,} {unit}s")
    if problems:
        raise UserError(f"unreadable inputs: {len(problems)}, see above; {unit}s answered: {answered}")


def _network(args: argparse.Namespace) -> str:
    return str(args.workdir or args.weights)


def _of_texts(
    classifier: "TextClassifier", args: argparse.Namespace, tell: Callable[[str], None]
) -> Iterator[list[Answer]]:
    """Yields the predictions of the texts that `args` name; with `--explain` answers name the page of each."""
    from sft_jax.inference.text_files import NamedText, of_file, of_strings, text_predictions
    from sft_jax.report.explained import write_explained

    notices: list[str] = []

    def named() -> Iterator[NamedText]:
        yield from of_strings(args.text)
        for name in args.inputs:
            if name == "-":
                lines = (line.strip() for line in sys.stdin)
                yield from of_strings(line for line in lines if line)
            else:
                yield from of_file(Path(name).expanduser(), args.columns, tell, notices)

    explain, done = args.explain, 0
    for answers in text_predictions(classifier, named(), args.top, explain=explain is not None):
        if explain is not None:
            page = write_explained(explain, answers, classifier.decoder, _network(args), done)
            for answer in answers:
                answer["explanation"] = str(page)
        done += len(answers)
        yield answers
    for line in notices:
        print(f"notice: {printable(line)}", file=sys.stderr)


def _check_output(classifier: "Classifier | TextClassifier", args: argparse.Namespace) -> None:
    """Raises UserError if the predictions cannot be made, or written, as the flags say."""
    check_view_flags(args, dense=classifier.task.dense)
    if classifier.task.dense:
        if args.explain is not None:
            raise UserError(
                "--explain shows what speaks for a class of the whole image; a mask shows where each class is"
            )
        if args.output is None or args.output.suffix:
            raise UserError("the network predicts a mask for each image: add --output FOLDER, where they are written")
    elif args.output is not None and args.output.suffix != ".csv":
        raise UserError(f"--output {args.output} must end in .csv")


def _files(name: str, tell: Callable[[str], None]) -> Iterator[Path]:
    """Yields the image files that a name stands for, see `images.named.files`; "hf:..." is a set of Hugging Face."""
    from sft_jax.config import default_config
    from sft_jax.data.images.named import files
    from sft_jax.data.sources.lists import huggingface_images

    kind, _, rest = name.partition(":")
    if kind != "hf" or not rest:
        yield from files([name], tell)
        return
    notices: list[str] = []
    yield from huggingface_images(rest, default_config().data, notices)
    for line in notices:
        print(f"notice: {printable(line)}", file=sys.stderr)


def predictions(
    classifier: "Classifier",
    paths: Iterable[Path],
    top: int | None,
    tell: Callable[[str], None],
    max_pixels: int,
    explain: Path | None = None,
) -> Iterator[list[Answer]]:
    """Yields the predictions of each batch, as printed by `--json`; calls `tell` with a line per unreadable image.

    With the folder `explain` heat maps are written there, and answers name them as "explanation".
    """
    from sft_jax.data.images.named import decoded
    from sft_jax.inference.explain import write_overlays
    from sft_jax.inference.network import BATCH

    preprocess = classifier.preprocess
    readable = decoded(paths, functools.partial(preprocess.read, max_pixels=max_pixels), tell)
    done = 0
    while block := list(itertools.islice(readable, BATCH)):
        squares = [square for _, square in block]
        outputs = classifier.square_logits(squares)
        answers = [
            {"file": str(path)} | answer
            for (path, _), answer in zip(block, classifier.decoder.answers(outputs, top), strict=True)
        ]
        if explain is not None:
            heat = classifier.explain(squares, outputs.argmax(-1))
            for answer, file in zip(answers, write_overlays(explain, block, heat, preprocess, done), strict=True):
                answer["explanation"] = str(file)
        done += len(block)
        yield answers


if __name__ == "__main__":
    sys.exit(run_command(main))
