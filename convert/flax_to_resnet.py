"""The way back to torch: `python convert/flax_to_resnet.py --workdir runs/cifar10 --output resnet18.pth`.

The result is a state_dict for `torchvision.models.resnet18(num_classes=...)`, or whichever network was trained.
"""

import argparse
import io
import sys
from pathlib import Path

if __name__ == "__main__":  # Python has put this folder first; `convert` and `sft_jax` are found from its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

EXAMPLE = """examples:
  python convert/flax_to_resnet.py --workdir runs/cifar10 --output resnet18-cifar10.pth
  python convert/flax_to_resnet.py --weights weights/resnet18.safetensors --output resnet18.safetensors
"""
SUFFIXES = (".pth", ".safetensors")
# What turns torchvision's stem into one of ours.
STEM_LINES = {
    "cifar": "model.conv1.stride, model.maxpool = (1, 1), torch.nn.Identity()",
    "cifar3x3": "model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()",
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    from sft_jax.cli import add_network_flags, make_parser

    description = "Writes weights as torchvision's state_dict, and proves that both networks give the same logits."
    parser = make_parser("python convert/flax_to_resnet.py", description, EXAMPLE)
    add_network_flags(parser, workdir="the best checkpoint of this run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .pth or .safetensors file")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for torch and jax.
    from sft_jax.config.shipped import install_command
    from sft_jax.errors import UserError

    if args.output.suffix not in SUFFIXES:
        raise UserError(f"--output {args.output} must end in {' or '.join(SUFFIXES)}")
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"converting needs {error.name}: {install_command('convert')}") from None
    convert(args.workdir, args.weights, args.output)


def convert(workdir: Path | None, file: Path | None, output: Path) -> None:
    """Converts the best checkpoint of the run `workdir`, or else the weights in `file`, and says what it does.

    Raises:
      UserError: there are none, or they do not fit their network or give other logits; nothing is written then.
    """
    from rich.console import Console

    from convert import parity, trained
    from sft_jax.models.weights import some_of

    console = Console(markup=False, highlight=False, soft_wrap=True)
    found = trained.read(workdir, file)
    comparisons = [parity.compare(found.module, found.network, found.arrays, size) for size in parity.SIZES]
    console.print(parity.table(comparisons))
    parity.check(comparisons)
    _save(found.state_dict, found.metadata(), output)
    difference = max(comparison.relative for comparison in comparisons)
    console.print(f"wrote {output}: logits within {difference:.1e} of Flax's; load it with")
    console.print(f"  model = torchvision.models.{found.arch}(num_classes={found.classes})")
    if found.stem in STEM_LINES:
        console.print(f"  {STEM_LINES[found.stem]}  # its stem")
    loader = "torch.load" if output.suffix == ".pth" else "safetensors.torch.load_file"
    console.print(f'  model.load_state_dict({loader}("{output}"))')
    if found.facts.class_names:
        console.print(f"classes: {some_of(found.facts.class_names, most=10)}")


def _save(state_dict: dict, metadata: dict[str, str], output: Path) -> None:
    import safetensors.torch
    import torch

    from sft_jax.runtime.files import write_bytes

    if output.suffix == ".pth":
        # Not to a file: torch raises RuntimeError for a full disk.
        content = io.BytesIO()
        torch.save(state_dict, content)
        write_bytes(output, content.getvalue())
    else:
        write_bytes(output, safetensors.torch.save(state_dict, metadata={"format": "pt"} | metadata))


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
