"""Exports a trained network with jax.export: `python -m sft_jax.export --workdir RUN --output FILE`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sft_jax.cli import add_checkpoint_flag, add_network_flags, make_parser
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.allocator import keep_freed_memory
from sft_jax.runtime.cache import keep_compiled_programs

EXAMPLE = """example:
  python -m sft_jax.export --workdir runs/cifar10 --output classifier.stablehlo

The file contains a StableHLO program with the weights, for CPUs, NVIDIA GPUs and TPUs and any batch size. Load it with
sft_jax.load(FILE), or without this package:

  program = jax.export.deserialize(bytearray(pathlib.Path("classifier.stablehlo").read_bytes()))
  program.call(inputs)  # normalised float32 [n, size, size, 3] -> logits
  program.call(tokens, segments)  # of texts: int32 and uint8 [n, length], padded at the ends

Its end is a zip archive: `unzip -p classifier.stablehlo metadata.json` prints size, mean, std and the class names; of
texts the tokenizer in place of size, mean and std.
For torch and ONNX see convert/flax_to_resnet.py and convert/flax_to_onnx.py.
"""
# Maximum difference of logits relative to the largest one by precision. In float32 as in convert/parity.py. In bfloat16
# the exported program, which is compiled for any batch size, rounds in other places (2**-9 each): ResNet-50 with random
# weights at 64 px differs by 1.3e-2, ResNet-18 by 5e-3.
TOLERANCES = {"float32": 1e-4, "highest": 1e-4, "tf32": 1e-4, "bfloat16": 5e-2}
# Batch sizes with which the program is verified.
BATCHES = (1, 3, 8)
ELSEWHERE = {
    ".onnx": "convert/flax_to_onnx.py",
    ".pth": "convert/flax_to_resnet.py",
    ".safetensors": "convert/flax_to_resnet.py",
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "python -m sft_jax.export",
        "Exports a trained network as a program, and verifies that its logits are the same.",
        EXAMPLE,
    )
    add_network_flags(parser, workdir="folder of a run")
    add_checkpoint_flag(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="output file, ending in .stablehlo or .jax"
    )
    return parser.parse_args(argv)


def main() -> None:
    """Exports and verifies the network, and prints a summary."""
    args = parse(sys.argv[1:])
    suffix = args.output.suffix
    if suffix in ELSEWHERE:
        raise UserError(f"--output {args.output}: to write a {suffix} file, use python {ELSEWHERE[suffix]}")
    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.inference.stablehlo import PLATFORMS, SUFFIXES

    if suffix not in SUFFIXES:
        raise UserError(f"--output {args.output} must end in {' or '.join(SUFFIXES)}")
    source = args.workdir or args.weights
    difference, platform = export(source, args.checkpoint, args.output)
    print(
        f"wrote {args.output} ({args.output.stat().st_size / 1e6:.0f} MB) for {', '.join(PLATFORMS)}: verified on "
        f"{platform} with batch sizes {', '.join(map(str, BATCHES))}, logits within {difference:.1e} of those of "
        f'{source}; load it with sft_jax.load("{args.output}")'
    )


def export(source: Path, checkpoint: str, output: Path) -> tuple[float, str]:
    """Exports the network of `source` (see `sft_jax.load`) to `output`, if the program gives the same logits.

    Returns:
      the maximum difference of logits relative to the largest one, and the platform on which it was measured.

    Raises:
      UserError: `source` cannot be loaded, the program's logits differ, or writing fails; nothing is written then.
    """
    import jax
    import numpy as np

    import sft_jax
    from sft_jax.inference.predictor import Classifier, load, load_export
    from sft_jax.inference.stablehlo import image_inputs, save_exported, text_inputs
    from sft_jax.runtime.files import written_whole

    classifier = load(source, checkpoint=checkpoint)
    random, most = np.random.default_rng(0), max(BATCHES)
    own: dict[str, Any]
    examples: Any
    if isinstance(classifier, Classifier):
        size = classifier.preprocess.size
        own, inputs = {"preprocess": classifier.preprocess.to_json()}, image_inputs(size)
        examples = random.integers(0, 256, (most, size, size, 3), np.uint8)
    else:
        own, inputs = {"padding": classifier.reading.padding}, text_inputs(classifier.reading.length)
        examples = classifier.reading.random_texts(random, most)
    metadata = own | {
        "source": str(source),
        "class_names": list(classifier.class_names),
        "precision": classifier.precision,
        "licence": classifier.licence,
        "task": classifier.task_name,
        "learnt": classifier.learnt,
        "versions": {"sft-jax": sft_jax.__version__, "jax": jax.__version__},
    }
    with written_whole(output) as temporary:
        save_exported(temporary, classifier.program, inputs, metadata)
        exported = load_export(temporary)
        difference = max(
            relative_difference(exported.logits(examples[:batch]), classifier.logits(examples[:batch]))
            for batch in BATCHES
        )
        tolerance = TOLERANCES[classifier.precision]
        if not difference <= tolerance:  # NaN must fail too
            raise UserError(
                f"the exported program's logits differ from those of {source} by {difference:.1e} of the largest one, "
                f"more than {tolerance:.0e}; nothing was written"
            )
    return difference, jax.default_backend()


def relative_difference(actual, wanted) -> float:
    """Computes the maximum difference of two arrays relative to the largest absolute value of `wanted`."""
    import numpy as np

    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    sys.exit(run_command(main))
