"""Converts a ResNet of torchvision: `python convert/resnet_to_flax.py --output weights/resnet18.safetensors`.

The result is one .safetensors file (see `sft_jax.models.weights`) whose metadata has, beside format, arch and
class_names:
num_classes (0 without a head), stem, preprocess (see `facts.py`; missing where it is not known), source,
source_sha256, torchvision (its version), logit_difference (measured here, relative to the largest logit) and
num_batches_tracked (JSON, for the way back). The certificate `<output>.json` holds what was measured.
"""

import argparse
import difflib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # Python has put this folder first; `convert` and `sft_jax` are found from its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from convert.fit import Fit
    from convert.parity import Comparison

EXAMPLE = """examples:
  python convert/resnet_to_flax.py --output weights/resnet18.safetensors
  python convert/resnet_to_flax.py --arch resnet50 --state-dict mine.pth --output weights/mine.safetensors
  python convert/resnet_to_flax.py --state-dict pets.pth --classes names.txt --output weights/pets.safetensors
  python convert/resnet_to_flax.py --state-dict last.pth.tar --key state_dict_ema --output w.safetensors
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
    own = parser.add_argument_group("of a --state-dict, where it does not say so itself")
    own.add_argument("--key", metavar="NAME", help="which of several state_dicts in it, as model_ema or state_dict.net")
    own.add_argument("--classes", metavar="FILE|a,b,c", help="names of the outputs: a line each, JSON, or with commas")
    own.add_argument(
        "--dataset", choices=("imagenet", "none"), help="whose class names it has (default: imagenet for 1,000 outputs)"
    )
    own.add_argument("--size", type=int, metavar="PIXELS", help="side of the images that it was made for")
    own.add_argument("--mean", metavar="R,G,B", help="what is subtracted of them, on the scale 0..1")
    own.add_argument("--std", metavar="R,G,B", help="what they are divided by then")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help="what to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for torch and jax.
    from sft_jax.config.shipped import install_command
    from sft_jax.errors import UserError

    if args.output.suffix != ".safetensors":
        raise UserError(f"--output {args.output} must end in .safetensors")
    own = {name: getattr(args, name) for name in ("key", "classes", "dataset", "size", "mean", "std")}
    own = {name: value for name, value in own.items() if value is not None}
    if args.state_dict and not args.state_dict.is_file():
        raise UserError(f"there is no file {args.state_dict}")
    if own and not args.state_dict:
        raise UserError(f"--{next(iter(own))} goes with --state-dict FILE: torchvision says it of its own weights")
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"converting needs {error.name}: {install_command('convert')}") from None
    from sft_jax.models import ARCHITECTURES

    if args.arch not in ARCHITECTURES:
        near = difflib.get_close_matches(args.arch, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise UserError(f"there is no network {args.arch!r}; the nearest is --arch {near}")
    convert(args.arch, args.state_dict, args.weights, args.output, **own)


def convert(arch: str, file: Path | None, name: str, output: Path, **own: Any) -> None:
    """Converts the state_dict in `file`, or torchvision's weights `name` where it is None, and says what it does.

    Args:
      arch: torchvision's name of the network.
      file: see above.
      name: see above.
      output: what to write.
      own: of `file`, by flag: key, classes, dataset, size, mean, std; each as typed, and each may be missing.

    Raises:
      UserError: the weights cannot be had, do not fit, or do not give the same logits; nothing is written then.
    """
    from rich.console import Console

    from convert import facts, parity, sources
    from convert.fit import fit
    from sft_jax.models.weights import some_of
    from sft_jax.run.console import Console as StatusConsole

    console = Console(markup=False, highlight=False, soft_wrap=True)
    source = str(file) if file else f"torchvision's {name} of {arch}"
    path = file or sources.torchvision_file(arch, name)
    found = sources.read(path, own.pop("key", None))
    fitted = fit(found.state_dict, arch, source, stem=found.metadata.get("stem"))
    digest = sources.sha256(path)
    published = sources.published(arch, digest) if file else name
    known = facts.of_weights(arch, published) if published else facts.recorded(found.class_names, found.metadata)
    class_names, preprocess, notices = facts.completed(known, fitted, own, source)
    if file and published:
        console.print(f"{source} is torchvision's {published} of {arch}")
    for notice in [*found.notices, *fitted.notices, *notices]:
        console.print(f"{source}: {notice}")

    with StatusConsole().status(f"running torch and Flax on the same images at {', '.join(map(str, parity.SIZES))} px"):
        comparisons = [parity.compare(fitted.module, fitted.network, fitted.arrays, size) for size in parity.SIZES]
    console.print(parity.table(comparisons))
    parity.check(comparisons)
    said = {"class_names": class_names, "preprocess": preprocess}
    _save(fitted, comparisons, {"source": source, "source_sha256": digest, **said}, output)

    difference = max(comparison.relative for comparison in comparisons)
    parameters = sum(array.size for key, array in fitted.weights().items() if key in fitted.network.params)
    head = f"{fitted.classes} classes" if fitted.classes else "no head"
    names = f" ({some_of(class_names)})" if class_names else ""
    console.print(
        f"wrote {output}: {arch}, {head}{names}, {parameters:,} parameters, logits within {difference:.1e} of "
        f"torch's; certificate in {_certificate(output)}"
    )


def _save(fitted: "Fit", comparisons: "list[Comparison]", facts: dict[str, Any], output: Path) -> None:
    """Writes the weights and their certificate, with `facts` in both."""
    from convert import parity, sources
    from sft_jax.models.weights import Weights, save_weights
    from sft_jax.runtime.files import write_json

    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "torch", "torchvision")}
    difference = max(comparison.relative for comparison in comparisons)
    class_names, preprocess = facts["class_names"], facts["preprocess"]
    metadata = {
        "num_classes": str(fitted.classes),
        "stem": fitted.stem,
        "source": facts["source"],
        "source_sha256": facts["source_sha256"],
        "torchvision": versions["torchvision"],
        "logit_difference": f"{difference:.1e}",
        "num_batches_tracked": json.dumps(fitted.counters),
    }
    if preprocess is not None:
        metadata["preprocess"] = json.dumps(preprocess)
    save_weights(output, Weights(fitted.weights(), fitted.arch, class_names, metadata))
    write_json(
        _certificate(output),
        {"arch": fitted.arch, "stem": fitted.stem, "num_classes": fitted.classes}
        | facts
        | {"output": str(output), "output_sha256": sources.sha256(output), "versions": versions}
        | {"tolerance": parity.TOLERANCE, "logit_difference": difference}
        | {"sizes": [comparison.to_json() for comparison in comparisons]},
    )


def _certificate(output: Path) -> Path:
    return output.with_name(output.name + ".json")


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
