"""Writes HTML reports: `python -m sft_jax.report --workdir RUN`, or `--compare RUN RUN ...` to compare runs."""

import argparse
import os
import sys
from pathlib import Path

from sft_jax.cli import make_parser
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.cache import keep_compiled_programs

EXAMPLE = """examples:
  python -m sft_jax.report --workdir runs/cifar10
  python -m sft_jax.report --workdir runs/cifar10 --explain --output why.html
  python -m sft_jax.report --compare runs/cifar10 runs/cifar10_scratch --output compare.html
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = make_parser(
        "python -m sft_jax.report", "Writes an HTML report of a run, or a comparison of runs.", EXAMPLE
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=Path, metavar="RUN", help="write the report of this run again")
    what.add_argument("--compare", type=Path, metavar="RUN", nargs="+", help="compare these runs")
    parser.add_argument(
        "--explain", action="store_true", help="with --workdir: also show heat maps, as with report.explain"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="output file (default: RUN/report.html, or compare.html with --compare)",
    )
    args = parser.parse_args(argv)
    if args.compare and args.explain:
        parser.error("--explain needs --workdir")
    return args


def main() -> None:
    """Parses the command line and writes the page."""
    args = parse(sys.argv[1:])
    # jax is imported after parsing, so that --help and usage errors are fast.
    keep_compiled_programs()
    if args.compare:
        output = compare(args.compare, args.output or Path("compare.html"))
    else:
        output = rewrite(args.workdir, args.output, explain=args.explain)
    print(f"report     {output}")


def compare(folders: list[Path], output: Path) -> Path:
    """Writes the comparison of these runs and returns its path. Raises UserError if a run cannot be read."""
    from sft_jax.report.comparison import comparison_page
    from sft_jax.report.reporter import records_of
    from sft_jax.run.folder import Run
    from sft_jax.runtime.files import write_text

    names = short_names(folders)
    write_text(output, comparison_page([records_of(Run(folder), names[folder]) for folder in folders]))
    return output


def short_names(folders: list[Path]) -> dict[Path, str]:
    """Returns the folders relative to their common parent. Raises UserError if a folder is given twice."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UserError("--compare got the same run twice; give each run once")
    parent = Path(os.path.commonpath([folder.parent for folder in resolved]))
    return {folder: str(whole.relative_to(parent)) for folder, whole in zip(folders, resolved, strict=True)}


def rewrite(workdir: Path, output: Path | None, *, explain: bool) -> Path:
    """Writes the report of a run's best checkpoint and returns its path.

    Args:
      workdir: the run.
      output: see `Reports.write`.
      explain: whether to show heat maps even if the run's own report has none.

    Raises:
      UserError: the run cannot be read, or there are no heat maps of its task or network.
    """
    from sft_jax.config import complete, flatten
    from sft_jax.report.explaining import check_explained
    from sft_jax.report.reporter import Reports
    from sft_jax.run.console import Console
    from sft_jax.run.folder import Run
    from sft_jax.runtime.devices import Devices
    from sft_jax.training.experiment import Experiment
    from sft_jax.training.start import earlier, read_dataset

    run, devices = Run(workdir), Devices()
    values = flatten(run.config())
    # The run may have had another number of devices.
    values["batch_size"] = devices.whole_batch(values["batch_size"])
    values["report.explain"] |= explain
    config = complete(values)
    check_explained(config)
    dataset = read_dataset(config, Console(), once=True, before=earlier(run))
    return Reports(Experiment(config, dataset, devices), run).write_from_disk(output)


if __name__ == "__main__":
    sys.exit(run_command(main))
