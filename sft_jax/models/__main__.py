"""Lists the networks: `python -m sft_jax.models`."""

import difflib
import json
import sys

from sft_jax.cli import make_parser
from sft_jax.errors import UserError, run_command

EXAMPLE = """example:
  python -m sft_jax.models
  python -m sft_jax.models vit_small_patch16_224 --json

Parameters are those with 1,000 classes. GFLOP is for one image of the size at which the weights were evaluated, or for
a text of 128 tokens; a multiply-add counts as two. Top-1 is the best published accuracy on ImageNet that torchvision
records. For segmentation put linear_, fcn_, deeplabv3_, segformer_, upernet_ (both of networks with maps of several
sizes) or lraspp_ (mobile networks) before a name, e.g. fcn_resnet18; _os8 or _os16 after it sets the stride of the last
map. Convert weights with: python convert/to_flax.py --arch NAME
"""


def main() -> None:
    """Parses the command line and prints the list."""
    parser = make_parser("python -m sft_jax.models", "Lists the networks and their published weights.", EXAMPLE)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these networks")
    parser.add_argument("--json", action="store_true", help="print one JSON object per network")
    args = parser.parse_args()
    # Imported late, so that --help and usage errors need not wait for jax.
    from sft_jax.models import ARCHITECTURES, catalogue

    for name in args.names:
        if name not in ARCHITECTURES:
            near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)[0]
            raise UserError(f"unknown network {name!r}; did you mean {near!r}?")
    rows = [catalogue.row(name) for name in args.names or ARCHITECTURES]
    if args.json:
        for row in rows:
            print(json.dumps(row))
        return
    print(f"{'name':<31}{'parameters':>11}{'GFLOP':>8}{'size':>6}{'top-1':>7}  licence and weights")
    for row in rows:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        weights: dict[str, list[str]] = {}
        for reference in row["references"]:
            library, _, tag = reference.partition(": ")
            weights.setdefault(library, []).append(tag)
        sources = "; ".join(f"{library}: {', '.join(tags)}" for library, tags in weights.items())
        licence = f"{row['licence']}; " if row["licence"] else ""
        print(
            f"{row['name']:<31}{row['parameters'] / 1e6:>9.1f} M{row['flops'] / 1e9:>8.1f}{row['size']:>6}{top1:>7}  "
            f"{licence}{sources or 'no published weights'}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
