"""Writes a trained network as ONNX: `python convert/flax_to_onnx.py --workdir runs/cifar10 --output cifar10.onnx`.

Through torch's network of the same weights. The input `images` is float32 [batch, 3, size, size], normalised as the
file's metadata say (mean, std, on the scale 0..1), the output `logits` float32 [batch, classes].
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # Python has put this folder first; `convert` and `sft_jax` are found from its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from convert.trained import Trained

EXAMPLE = """examples:
  python convert/flax_to_onnx.py --workdir runs/cifar10 --output resnet18-cifar10.onnx
  python convert/flax_to_onnx.py --weights weights/resnet18.safetensors --output resnet18.onnx
"""
PACKAGES = ("torchvision", "onnx", "onnxscript", "onnxruntime")
# Numbers of images with which the file is run.
BATCHES = (1, 3, 8)


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    from sft_jax.cli import add_network_flags, make_parser

    description = "Writes a trained network as ONNX, and proves with onnxruntime that it gives the same logits."
    parser = make_parser("python convert/flax_to_onnx.py", description, EXAMPLE)
    add_network_flags(parser, workdir="the best checkpoint of this run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx", help="what to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for torch and jax.
    import importlib.util

    from sft_jax.config.shipped import install_command
    from sft_jax.errors import UserError

    if args.output.suffix != ".onnx":
        raise UserError(f"--output {args.output} must end in .onnx")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"converting to ONNX needs {', '.join(missing)}: {install_command('onnx')}")
    convert(args.workdir, args.weights, args.output)


def convert(workdir: Path | None, file: Path | None, output: Path) -> None:
    """Converts the best checkpoint of the run `workdir`, or else the weights in `file`, and says what it does.

    Raises:
      UserError: there are none, they do not fit their network, the ONNX file gives other logits, or it cannot be
        written; nothing is left then.
    """
    import torch
    from rich.console import Console

    from convert import trained
    from sft_jax.runtime.files import written_whole

    found = trained.read(workdir, file)
    size, batches = found.size, ", ".join(map(str, BATCHES))
    program = torch.onnx.export(
        found.module,
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None, "the dynamo exporter returns one"
    program.model.metadata_props.update(metadata(found))
    with written_whole(output) as temporary:
        program.save(temporary, external_data=False)
        difference = max(largest_difference(temporary, found, batch) for batch in BATCHES)
    Console(markup=False, highlight=False, soft_wrap=True).print(
        f"wrote {output}: {found.arch}, {found.classes} classes; images float32 [batch, 3, {size}, {size}], "
        f"normalised; run by onnxruntime with batches of {batches}, logits within {difference:.1e} of Flax's"
    )


def metadata(found: "Trained") -> dict[str, str]:
    """What the file says of itself, JSON by name: class_names, mean and std beside `Trained.metadata`.

    Outputs without names are called "0", "1", ...; what images are normalised with is left out where it is not known.
    """
    names = found.facts.class_names or [str(label) for label in range(found.classes)]
    normalised = {name: found.facts.preprocess[name] for name in ("mean", "std")} if found.facts.preprocess else {}
    facts = {"class_names": list(names)} | normalised
    return found.metadata() | {name: json.dumps(fact) for name, fact in facts.items()}


def largest_difference(path: Path, found: "Trained", batch: int) -> float:
    """Of a logit of the ONNX file from our network's, relative to the largest one, on random images.

    Raises:
      UserError: it is too large.
    """
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    from convert import parity
    from sft_jax.errors import UserError

    size = found.size
    images = np.random.default_rng(batch).standard_normal((batch, size, size, 3), np.float32)
    _, ours = parity.flax_activations(found.network, found.arrays, images)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    difference = float(np.abs(theirs - ours).max() / np.abs(ours).max())
    if not difference <= parity.TOLERANCE:  # NaN must fail too
        raise UserError(
            f"the ONNX network differs: a logit is off by {difference:.1e} of the largest one, more than "
            f"{parity.TOLERANCE:.0e}; nothing was written"
        )
    return difference


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
