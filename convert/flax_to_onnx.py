"""Exports a trained network to ONNX: `python convert/flax_to_onnx.py --workdir runs/cifar10 --output cifar10.onnx`.

Goes via torch's network with the same weights. The input `images` is float32 [batch, 3, size, size], normalised with
mean and std of the file's metadata (for pixels in 0..1). The inputs of texts are those of transformers, `input_ids` and
`attention_mask` and for some networks `token_type_ids`, int64 [batch, length]; the tokenizer is in the metadata. The
output `logits` is float32 [batch, classes].
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # replaces this folder by its parent, from which `convert` and `sft_jax` are importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from convert.trained import Trained

EXAMPLE = """examples:
  python convert/flax_to_onnx.py --workdir runs/cifar10 --output resnet18-cifar10.onnx
  python convert/flax_to_onnx.py --weights weights/resnet18.safetensors --output resnet18.onnx
"""
PACKAGES = ("torchvision", "onnx", "onnxscript", "onnxruntime")
# Batch sizes with which the exported file is tested.
BATCHES = (1, 3, 8)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    from sft_jax.cli import add_network_flags, make_parser

    description = "Exports a trained network to ONNX, and verifies with onnxruntime that the logits are the same."
    parser = make_parser("python convert/flax_to_onnx.py", description, EXAMPLE)
    add_network_flags(parser, workdir="export the best checkpoint of this run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # Imported late, so that --help and usage errors need not wait for torch and jax.
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
    """Converts the best checkpoint of the run `workdir`, or the weights in `file`, and prints what it does.

    Raises:
      UserError: there are no weights, they do not fit their network, or the ONNX file gives other logits or cannot be
        written. No file is left behind.
    """
    import torch
    from rich.console import Console

    from convert import trained
    from convert.families import reference_of
    from sft_jax.runtime.files import written_whole

    model = trained.read(workdir, file, inputs=True)
    reference, batches = reference_of(model.arch), ", ".join(map(str, BATCHES))
    given = reference.given(model.module, *reference.inputs(model.module, model.size, 2, seed=0))
    names = list(given)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model.module

        # One by one, because the exporter of torch 2.9 fails with `*tensors`.
        def forward(self, first, second=None, third=None) -> torch.Tensor:
            return reference.logits(self.module, dict(zip(names, (first, second, third), strict=False)))

    most = {} if model.longest is None else {"length": model.longest}
    dims = {axis: torch.export.Dim(name, max=most.get(name)) for axis, name in enumerate(reference.axes)}
    with warnings.catch_warnings():
        # The inputs of texts share their axes.
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used")
        program = torch.onnx.export(
            Logits().eval(),
            tuple(given.values()),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(dims,) * len(names),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    program.model.metadata_props.update(metadata(model))
    with written_whole(output) as temporary:
        program.save(temporary, external_data=False)
        difference = max(largest_difference(temporary, model, batch) for batch in BATCHES)
    shapes = ", ".join(
        f"{name} {str(tensor.dtype).removeprefix('torch.')} "
        f"{[*reference.axes, *tensor.shape[len(reference.axes) :]]}".replace("'", "")
        for name, tensor in given.items()
    )
    Console(markup=False, highlight=False, soft_wrap=True).print(
        f"wrote {output}: {model.arch}, {model.classes} outputs; inputs {shapes}; checked in onnxruntime with batches "
        f"of {batches}: logits within {difference:.1e} of Flax's"
    )


def metadata(model: "Trained") -> dict[str, str]:
    """Returns the metadata of the file, as JSON by name: `Trained.metadata` plus class_names, mean and std.

    Classes without names are called "0", "1", ...; mean and std are omitted if unknown.
    """
    names = model.facts.class_names or [str(label) for label in range(model.classes)]
    normalised = {name: model.facts.preprocess[name] for name in ("mean", "std")} if model.facts.preprocess else {}
    facts = {"class_names": list(names)} | normalised
    return model.metadata() | {name: json.dumps(fact) for name, fact in facts.items()}


def largest_difference(path: Path, model: "Trained", batch: int) -> float:
    """Returns the largest difference between logits of the ONNX file and of our network on random examples.

    It is relative to the largest logit.

    Raises:
      UserError: it exceeds `parity.TOLERANCE`.
    """
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]

    from convert import parity
    from convert.families import reference_of
    from sft_jax.errors import UserError

    reference = reference_of(model.arch)
    size = model.size if model.longest is None else min(model.longest, 16 * batch)
    inputs = reference.inputs(model.module, size, batch, seed=batch)
    _, ours = parity.flax_activations(model.network, model.arrays, inputs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = reference.given(model.module, *inputs)
    (theirs,) = session.run(["logits"], {name: tensor.contiguous().numpy() for name, tensor in given.items()})
    theirs = np.moveaxis(theirs, 1, -1)  # of pixels, outputs come before them in torch
    difference = float(np.abs(theirs - ours).max() / np.abs(ours).max())
    if not difference <= parity.TOLERANCE:  # NaN must fail too
        raise UserError(
            f"the ONNX network differs: a logit is off by {difference:.1e} of the largest one, more than "
            f"the tolerance {parity.TOLERANCE:.0e}; nothing was written"
        )
    return difference


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
