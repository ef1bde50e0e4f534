"""Writes reports: `python -m sft_jax.report --workdir RUN`, and `--compare RUN RUN ...` for runs side by side."""

import argparse
import os
import sys
from pathlib import Path

from sft_jax.cli import make_parser
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.cache import keep_compiled_programs

EXAMPLE = """examples:
  python -m sft_jax.report --workdir runs/cifar10
  python -m sft_jax.report --compare runs/cifar10 runs/cifar10_scratch --output compare.html
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = make_parser("python -m sft_jax.report", "Writes a page on a run, or on several side by side.", EXAMPLE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=Path, metavar="RUN", help="write the report of this run once more")
    what.add_argument("--compare", type=Path, metavar="RUN", nargs="+", help="put these runs side by side")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html, and compare.html for --compare)",
    )
    return parser.parse_args(argv)


def main() -> None:
    """Parses the command line and writes the page."""
    args = parse(sys.argv[1:])
    # After the flags: --help and wrong usage need not wait for jax.
    keep_compiled_programs()
    if args.compare:
        output = compare(args.compare, args.output or Path("compare.html"))
    else:
        output = rewrite(args.workdir, args.output)
    print(f"report     {output}")


def compare(folders: list[Path], output: Path) -> Path:
    """Writes the page on these runs and returns its path. Raises UserError."""
    from sft_jax.report.comparison import comparison_page
    from sft_jax.report.reporter import records_of
    from sft_jax.run.folder import Run
    from sft_jax.runtime.files import write_text

    names = short_names(folders)
    write_text(output, comparison_page([records_of(Run(folder), names[folder]) for folder in folders]))
    return output


def short_names(folders: list[Path]) -> dict[Path, str]:
    """The folders without what is before all of them. Raises UserError where one is named twice."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("--compare names a run twice; name each once")
    parent = Path(os.path.commonpath([folder.parent for folder in resolved]))
    return {folder: str(whole.relative_to(parent)) for folder, whole in zip(folders, resolved, strict=True)}


def rewrite(workdir: Path, output: Path | None) -> Path:
    """Writes the page of a run's best checkpoint and returns its path. Raises UserError."""
    from sft_jax.config import complete, flatten
    from sft_jax.report.reporter import Reports
    from sft_jax.run.console import Console
    from sft_jax.run.folder import Run
    from sft_jax.runtime.devices import Devices
    from sft_jax.training.experiment import Experiment
    from sft_jax.training.start import earlier, read_dataset

    run, devices = Run(workdir), Devices()
    values = flatten(run.config())
    # Batches that divide over these devices: the run may have had others.
    config = complete(values | {"batch_size": devices.whole_batch(values["batch_size"])})
    dataset = read_dataset(config, Console(), once=True, before=earlier(run))
    return Reports(Experiment(config, dataset, devices), run).write_from_disk(output)


if __name__ == "__main__":
    sys.exit(run_command(main))
