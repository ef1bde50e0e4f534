"""The command: `python -m sft_jax.embed --workdir RUN --data SOURCE --output F.npz`."""

import argparse
import sys
from pathlib import Path

from sft_jax.cli import (
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

The file has the arrays features (what the network's head gets, float32 [n, channels]), labels (int32 [n]), class_names
(in label order) and files (names relative to the source's folder, or such as train[12] if the images are not files).
Unreadable images are reported on standard error and left out; the exit code is then 2.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Parses the flags and the settings of the data."""
    parser = make_parser("python -m sft_jax.embed", "Writes the features of all images of a source.", EXAMPLE)
    add_network_flags(parser, workdir="folder of the run")
    add_checkpoint_flag(parser)
    add_source_flags(parser)
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

    from sft_jax.data.sources.pictures import load_pictures
    from sft_jax.inference.embedding import embed
    from sft_jax.inference.predictor import load_of_images
    from sft_jax.run.console import Console
    from sft_jax.runtime.files import written_whole

    console = Console()
    notices: list[str] = []
    classifier = load_of_images(args.workdir or args.weights, checkpoint=args.checkpoint)
    pictures = load_pictures(source_settings(args.data, overrides, "embed"), notices, split=args.split)
    with console.progress(args.data, 1) as bar:
        embedded = embed(classifier, pictures, lambda image: None, bar.set)
    for line in (*notices, *embedded.warnings):
        print(f"notice: {printable(line)}", file=sys.stderr)
    for row, why in embedded.problems.items():
        print(printable(f"{pictures.names[row]} cannot be read: {why}"), file=sys.stderr)
    arrays = {
        "features": embedded.features,
        "labels": pictures.labels[embedded.rows],
        "class_names": np.array(pictures.class_names),
        "files": np.array(pictures.names)[embedded.rows],
    }
    with written_whole(args.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    count, channels = embedded.features.shape
    print(f"wrote {args.output}: {count:,} images, {channels:,} features each")
    if embedded.problems:
        raise UserError(f"unreadable images: {len(embedded.problems)}, see above; images written: {count}")


if __name__ == "__main__":
    sys.exit(run_command(main))
