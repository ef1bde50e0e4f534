"""Converts pretrained weights: `python convert/resnet_to_flax.py --output weights/resnet18.safetensors`.

The result is one .safetensors file (see `sft_jax.models.weights`). In addition to format, arch and class_names, its
metadata has num_classes (0 without a head), stem, preprocess, licence, task, learnt and tokenizer (see `facts.py`;
absent if unknown), source, source_sha256, torchvision (its version), logit_difference (measured here, relative to the
largest logit) and num_batches_tracked (JSON, for conversion back). The certificate `<output>.json` contains the
measurements.
"""

import argparse
import difflib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # replaces this folder by its parent, from which `convert` and `sft_jax` are importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if TYPE_CHECKING:
    from convert.fit import Fit
    from convert.parity import Comparison

EXAMPLE = """examples:
  python convert/resnet_to_flax.py --output weights/resnet18.safetensors
  python convert/resnet_to_flax.py --arch resnet50 --state-dict mine.pth --output weights/mine.safetensors
  python convert/resnet_to_flax.py --state-dict pets.pth --classes names.txt --output weights/pets.safetensors
  python convert/resnet_to_flax.py --state-dict last.pth.tar --key state_dict_ema --output w.safetensors
  python convert/to_flax.py --arch efficientnet_b0 --output weights/efficientnet_b0.safetensors
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    from sft_jax.cli import make_parser

    description = "Converts weights of a network in torch to Flax, and verifies that both give the same logits."
    parser = make_parser("python convert/resnet_to_flax.py", description, EXAMPLE)
    parser.add_argument(
        "--arch",
        default="resnet18",
        help="name of the network, torchvision's, timm's or transformers' (default: %(default)s)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", metavar="NAME", default="IMAGENET1K_V1", help="torchvision's own weights (default: %(default)s)"
    )
    source.add_argument(
        "--state-dict", type=Path, metavar="FILE", help="your own file instead: .pth, .safetensors, .npz"
    )
    own = parser.add_argument_group("options for --state-dict, if the file does not record them")
    own.add_argument("--key", metavar="NAME", help="which of several state_dicts, e.g. model_ema or state_dict.net")
    own.add_argument("--classes", metavar="FILE|a,b,c", help="class names: a file with one per line, JSON, or a list")
    own.add_argument(
        "--dataset",
        choices=("imagenet", "none"),
        help="dataset whose class names to use (default: imagenet for 1,000 outputs)",
    )
    own.add_argument("--size", type=int, metavar="PIXELS", help="image size that the network was trained for")
    own.add_argument("--mean", metavar="R,G,B", help="mean for normalisation, for pixels in 0..1")
    own.add_argument("--std", metavar="R,G,B", help="standard deviation for normalisation, for pixels in 0..1")
    own.add_argument("--licence", metavar="NAME", help="licence of the weights, which runs and exports pass on")
    own.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="of a network of texts (default: tokenizer.json beside the file)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help="the file to write")
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and converts."""
    args = parse(sys.argv[1:])
    # Imported late, so that --help and usage errors need not wait for torch and jax.
    from sft_jax.config.shipped import install_command
    from sft_jax.errors import UserError

    if args.output.suffix != ".safetensors":
        raise UserError(f"--output {args.output} must end in .safetensors")
    names = ("key", "classes", "dataset", "size", "mean", "std", "licence", "tokenizer")
    own = {name: getattr(args, name) for name in names}
    own = {name: value for name, value in own.items() if value is not None}
    if args.state_dict and not args.state_dict.is_file():
        raise UserError(f"no such file: {args.state_dict}")
    if own and not args.state_dict:
        raise UserError(f"--{next(iter(own))} requires --state-dict FILE; for torchvision's own weights it is known")
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"converting needs {error.name}: {install_command('convert')}") from None
    from sft_jax.models import ARCHITECTURES, find

    known = find(args.arch)
    if known is None:
        near = difflib.get_close_matches(args.arch, ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise UserError(f"unknown network {args.arch!r}; did you mean --arch {near}?")
    if not args.state_dict and known.reference != "torchvision":
        raise UserError(f"torchvision has no weights of {args.arch}; name a file with --state-dict FILE")
    convert(args.arch, args.state_dict, args.weights, args.output, **own)


def convert(arch: str, file: Path | None, name: str, output: Path, **own: Any) -> None:
    """Converts the state_dict in `file`, or torchvision's weights `name` if it is None, and prints what it does.

    Args:
      arch: torchvision's name of the network.
      file: a state_dict, or None.
      name: name of torchvision's weights.
      output: the file to write.
      own: options for `file` as typed: key, classes, dataset, size, mean, std, licence, tokenizer; each may be missing.

    Raises:
      UserError: the weights cannot be obtained, do not fit, or give other logits. Nothing is then written.
    """
    from rich.console import Console

    from convert import facts, parity, sidecar, sources, tokenizer
    from convert.families import reference_of
    from convert.fit import fit
    from sft_jax.models import architecture
    from sft_jax.models.weights import some_of
    from sft_jax.run.console import Console as StatusConsole

    console = Console(markup=False, highlight=False, soft_wrap=True)
    source = str(file) if file else f"torchvision's {name} of {arch}"
    path = file or sources.torchvision_file(arch, name)
    tokens = tokenizer.of_file(path, own.pop("tokenizer", None), architecture(arch))
    checkpoint = sources.read(path, own.pop("key", None), arch=arch)
    fitted = fit(checkpoint.state_dict, arch, source, stem=checkpoint.metadata.get("stem"))
    reference_of(arch).check_config(sidecar.config_beside(path), arch, head=fitted.classes > 0, source=source)
    digest = sources.sha256(path)
    published = sources.published(arch, digest) if file else name
    if published:
        known = facts.of_weights(arch, published)
    else:
        known = facts.recorded(checkpoint.class_names, checkpoint.metadata)
        known = known if file is None else facts.filled(known, sidecar.beside(file, arch))
    class_names, preprocess, notices, licence, task = facts.completed(known, fitted, own, source)
    if file and published:
        console.print(f"{source} is torchvision's {published} of {arch}")
    for notice in [*checkpoint.notices, *fitted.notices, *notices]:
        console.print(f"{source}: {notice}")
    if licence is not None:
        console.print(f"{source}: the licence of these weights is {licence}")

    sizes = parity.sizes(fitted.network, fitted.arrays)
    unit = reference_of(arch).unit
    with StatusConsole().status(f"running torch and Flax on the same inputs of {', '.join(map(str, sizes))} {unit}"):
        comparisons = [parity.compare(fitted.module, fitted.network, fitted.arrays, size) for size in sizes]
    console.print(parity.table(comparisons))
    parity.check(comparisons)
    origin = {"source": source, "source_sha256": digest, "licence": licence, **task}
    if tokens is not None:
        origin["tokenizer"] = tokens
    _save(fitted, comparisons, {**origin, "class_names": class_names, "preprocess": preprocess}, output)

    difference = max(comparison.relative for comparison in comparisons)
    parameters = sum(array.size for key, array in fitted.weights().items() if key in fitted.network.params)
    head = f"{fitted.classes} classes" if fitted.classes else "no head"
    names = f" ({some_of(class_names)})" if class_names else ""
    console.print(
        f"wrote {output}: {arch}, {head}{names}, {parameters:,} parameters, logits within {difference:.1e} of "
        f"torch's; certificate in {_certificate(output)}"
    )


def _save(fitted: "Fit", comparisons: "list[Comparison]", facts: dict[str, Any], output: Path) -> None:
    """Writes the weights and their certificate, both with `facts`."""
    from convert import parity, sources
    from convert.families import EXTRAS
    from sft_jax.models import architecture
    from sft_jax.models.weights import Weights, save_weights
    from sft_jax.runtime.files import write_json

    reference = architecture(fitted.arch).reference
    libraries = ["jax", "flax", "torch", "torchvision", *([reference] if reference in EXTRAS else [])]
    versions = {package: importlib.metadata.version(package) for package in libraries}
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
    own = ("licence", "task", "learnt", "tokenizer")
    metadata |= {name: facts[name] for name in own if facts.get(name) is not None}
    save_weights(output, Weights(fitted.weights(), fitted.arch, class_names, metadata))
    write_json(
        _certificate(output),
        {"arch": fitted.arch, "stem": fitted.stem, "num_classes": fitted.classes}
        | {name: fact for name, fact in facts.items() if name != "tokenizer"}
        | {"output": str(output), "output_sha256": sources.sha256(output), "versions": versions}
        | {"tolerance": parity.TOLERANCE, "logit_difference": difference}
        | {"sizes": [comparison.to_json() for comparison in comparisons]},
    )


def _certificate(output: Path) -> Path:
    return output.with_name(output.name + ".json")


if __name__ == "__main__":
    from sft_jax.errors import run_command

    sys.exit(run_command(main))
