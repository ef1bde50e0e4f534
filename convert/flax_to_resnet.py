"""Converts weights back to torch: `python convert/flax_to_resnet.py --workdir runs/cifar10 --output resnet18.pth`.

The result is a state_dict for `torchvision.models.resnet18(num_classes=...)`, or whichever network was trained, of
torchvision or timm.
"""

import argparse
import io
import sys
from pathlib import Path

if __name__ == "__main__":  # replaces this folder by its parent, from which `convert` and `sft_jax` are importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

EXAMPLE = """examples:
  python convert/flax_to_resnet.py --workdir runs/cifar10 --output resnet18-cifar10.pth
  python convert/flax_to_resnet.py --weights weights/resnet18.safetensors --output resnet18.safetensors
"""
SUFFIXES = (".pth", ".safetensors")
# Code that turns torchvision's stem into one of ours.
STEM_LINES = {
    "cifar": "model.conv1.stride, model.maxpool = (1, 1), torch.nn.Identity()",
    "cifar3x3": "model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()",
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    from sft_jax.cli import add_network_flags, make_parser

    description = "Converts weights to a state_dict for torch, and verifies that both networks give the same logits."
    parser = make_parser("python convert/flax_to_resnet.py", description, EXAMPLE)
    add_network_flags(parser, workdir="convert the best checkpoint of this run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .pth or .safetensors to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # Imported late, so that --help and usage errors need not wait for torch and jax.
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
    """Converts the best checkpoint of the run `workdir`, or the weights in `file`, and prints what it does.

    Raises:
      UserError: there are no weights, they do not fit their network or give other logits. Nothing is then written.
    """
    from rich.console import Console

    from convert import parity, trained
    from sft_jax.models.weights import some_of

    console = Console(markup=False, highlight=False, soft_wrap=True)
    model = trained.read(workdir, file)
    sizes = parity.sizes(model.network, model.arrays)
    comparisons = [parity.compare(model.module, model.network, model.arrays, size) for size in sizes]
    console.print(parity.table(comparisons))
    parity.check(comparisons)
    _save(model.state_dict, model.metadata(), output)
    difference = max(comparison.relative for comparison in comparisons)
    console.print(f"wrote {output}: logits within {difference:.1e} of Flax's; load it with")
    loaded = f'{"torch.load" if output.suffix == ".pth" else "safetensors.torch.load_file"}("{output}")'
    kind, renamed = type(model.module), not model.state_dict.keys() <= model.module.state_dict().keys()
    if model.network.architecture.reference == "torchvision":
        place = "models.segmentation" if model.network.architecture.dense else "models"
        console.print(f"  model = torchvision.{place}.{model.arch}(num_classes={model.classes})")
    elif model.network.architecture.reference == "timm":
        console.print(f'  model = timm.create_model("{model.arch}", num_classes={model.classes})')
    elif renamed:  # transformers gives the names of published files those of its modules
        settings = f"config=config, state_dict={loaded}"
        console.print(f"  # in config: num_labels={model.classes}")
        console.print(f"  model = transformers.{kind.__name__}.from_pretrained(None, {settings})")
    elif kind.__module__.startswith("transformers."):
        console.print(f"  model = transformers.{kind.__name__}(config)  # num_labels={model.classes}")
    else:
        console.print(f"  model = {kind.__name__}(config)  # from {kind.__module__}")
    if model.stem in STEM_LINES:
        console.print(f"  {STEM_LINES[model.stem]}  # its stem")
    if not renamed:
        console.print(f"  model.load_state_dict({loaded})")
    if model.facts.class_names:
        console.print(f"outputs: {some_of(model.facts.class_names, most=10)}")
    where = "also in its metadata" if output.suffix == ".safetensors" else "not in the file"
    if "tokenizer" in model.facts.task:
        console.print(f"tokenizer, {where}: that of the weights")
    if model.facts.task.get("learnt", "{}") != "{}":
        console.print(f"task {model.facts.task['task']}, {where}: {model.facts.task['learnt']}")


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
