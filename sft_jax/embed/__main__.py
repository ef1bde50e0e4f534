"""The command: `python -m sft_jax.embed --workdir RUN --data SOURCE --output F.npz`."""

import argparse
import sys
from pathlib import Path

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

EXAMPLE = """example:
  python -m sft_jax.embed --workdir runs/flowers --data folder:flowers --output flowers.npz
  python -m sft_jax.embed --weights package:efficientnet-lite0 --data csv:photos.csv --output photos.npz
  python -m sft_jax.embed --weights package:all-minilm-l6-v2 --data text:reviews.csv --output reviews.npz

The file has the arrays features (what the network's head gets, float32 [n, channels]), labels (int32 [n]), class_names
(in label order) and files (names relative to the source's folder, such as train[12] if the images are not files, or
reviews.csv:12 of texts).
Unreadable images are reported on standard error and left out; the exit code is then 2.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the settings of the data."""
    parser = make_parser("python -m sft_jax.embed", "Writes the features of all images or texts of a source.", EXAMPLE)
    add_network_flags(parser, workdir="folder of the run")
    add_checkpoint_flag(parser)
    add_source_flags(parser, WITH_TEXTS)
    parser.add_argument("--output", type=Path, metavar="FILE.npz", required=True, help="the file to write")
    return parse_with_overrides(parser, argv)


def main() -> None:
    """Computes the features and writes them."""
    args, overrides = parse(sys.argv[1:])
    if args.output.suffix != ".npz":
        raise UserError(f"--output {args.output} must end in .npz")
    # Imported after parsing, as in `main.py`.
    keep_freed_memory()
    keep_compiled_programs()
    import numpy as np

    from sft_jax.inference.embedding import arrays_of_images, arrays_of_texts
    from sft_jax.inference.predictor import Classifier, load
    from sft_jax.run.console import Console
    from sft_jax.runtime.files import written_whole

    notices: list[str] = []
    problems: list[str] = []
    network = load(args.workdir or args.weights, checkpoint=args.checkpoint, features_only=True)
    config = source_settings(args.data, overrides, "embed", WITH_TEXTS)
    with Console().progress(args.data, 1) as bar:
        if isinstance(network, Classifier):
            arrays = arrays_of_images(network, config, args.split, notices, problems, bar.set)
        else:
            arrays = arrays_of_texts(network, config, args.split, notices, bar.set)
    for line in notices:
        print(f"notice: {printable(line)}", file=sys.stderr)
    for line in problems:
        print(printable(line), file=sys.stderr)
    with written_whole(args.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    (count, channels), unit = arrays["features"].shape, network.task.unit
    print(f"wrote {args.output}: {count:,} {unit}s, {channels:,} features each")
    if problems:
        raise UserError(f"unreadable images: {len(problems)}, see above; images written: {count}")


if __name__ == "__main__":
    sys.exit(run_command(main))
