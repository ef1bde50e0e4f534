"""Converts a ResNet of torchvision: `python convert/resnet_to_flax.py --output weights/resnet18.safetensors`.

The result is one .safetensors file (see `sft_jax.weights`) whose metadata has, beside format, arch and class_names:
num_classes, source, source_sha256, torchvision (its version), logit_difference (measured here, relative to the largest
logit) and num_batches_tracked (JSON, for the way back). The certificate `<output>.json` holds what was measured.
"""

import argparse
import difflib
import importlib.metadata
import json
import sys
from pathlib import Path

if __name__ == "__main__":  # Python has put this folder first; `convert` and `sft_jax` are found from its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

EXAMPLE = """examples:
  python convert/resnet_to_flax.py --output weights/resnet18.safetensors
  python convert/resnet_to_flax.py --arch resnet50 --state-dict mine.pth --output weights/mine.safetensors
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    from sft_jax.cli import make_parser

    description = "Converts weights of a torchvision ResNet to Flax, and proves that both give the same logits."
    parser = make_parser("python convert/resnet_to_flax.py", description, EXAMPLE)
    parser.add_argument("--arch", default="resnet18", help="torchvision's name of the network (default: %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", metavar="NAME", default="IMAGENET1K_V1", help="torchvision's own weights (default: %(default)s)"
    )
    source.add_argument("--state-dict", type=Path, metavar="FILE", help="a .pth or .safetensors file instead of them")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help="what to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for torch and jax.
    from sft_jax.errors import UserError

    if args.output.suffix != ".safetensors":
        raise UserError(f"--output {args.output} must end in .safetensors")
    if args.state_dict and not args.state_dict.is_file():
        raise UserError(f"there is no file {args.state_dict}")
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"converting needs {error.name}: pip install -e '.[convert]'") from None
    from sft_jax.models import SHAPES

    if args.arch not in SHAPES:
        near = difflib.get_close_matches(args.arch, SHAPES, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no network {args.arch!r}; the nearest is --arch {near}")
    convert(args.arch, args.state_dict, args.weights, args.output)


def convert(arch: str, file: Path | None, name: str, output: Path) -> None:
    """Converts the state_dict in `file`, or torchvision's weights `name` where it is None, and says what it does.

    Raises:
      UserError: the weights cannot be had, do not fit, or do not give the same logits; nothing is written then.
    """
    from rich.console import Console

    from convert import keys, networks, parity, sources
    from sft_jax.errors import UserError
    from sft_jax.models import SHAPES
    from sft_jax.report.console import Console as StatusConsole
    from sft_jax.report.results import write_json
    from sft_jax.weights import Weights, save_weights

    console = Console(markup=False, highlight=False, soft_wrap=True)
    source = str(file) if file else f"torchvision's {name} of {arch}"
    path = file or sources.torchvision_file(arch, name)
    class_names = None if file else sources.torchvision_classes(arch, name)
    state_dict, notices = sources.read_state_dict(path)
    for notice in notices:
        console.print(f"{source}: {notice}")

    head = state_dict.get("fc.weight")
    classes = head.shape[0] if head is not None and head.ndim == 2 else 1000
    network = networks.flax_network(arch, classes)
    if problems := keys.problems(state_dict, network):
        for other in SHAPES:
            if not keys.problems(state_dict, networks.flax_network(other, classes)):
                raise UserError(f"{source} is no {arch} but fits {other}: add --arch {other}")
        raise UserError("\n  ".join([f"{source} does not fit {arch}, nothing was written:", *problems]))
    arrays = keys.to_flax(state_dict, network)

    module = networks.torch_network(arch, classes, state_dict)
    with StatusConsole().status(f"running torch and Flax on the same images at {', '.join(map(str, parity.SIZES))} px"):
        comparisons = [parity.compare(module, network, arrays, size) for size in parity.SIZES]
    console.print(parity.table(comparisons))
    parity.check(comparisons)

    facts = {"arch": arch, "num_classes": classes, "source": source, "source_sha256": sources.sha256(path)}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "torch", "torchvision")}
    difference = max(comparison.relative for comparison in comparisons)
    metadata = {
        **{key: str(value) for key, value in facts.items()},
        "torchvision": versions["torchvision"],
        "logit_difference": f"{difference:.1e}",
        "num_batches_tracked": json.dumps(keys.counters_of(state_dict)),
    }
    save_weights(output, Weights(arrays, arch, class_names, metadata))
    certificate = output.with_name(output.name + ".json")
    write_json(
        certificate,
        facts
        | {"output": str(output), "output_sha256": sources.sha256(output), "versions": versions}
        | {"tolerance": parity.TOLERANCE, "logit_difference": difference}
        | {"sizes": [comparison.to_json() for comparison in comparisons]},
    )
    parameters = sum(arrays[key].size for key in network.params)
    console.print(
        f"wrote {output}: {arch}, {classes} classes, {parameters:,} parameters, logits within {difference:.1e} of "
        f"torch's; certificate in {certificate}"
    )


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
