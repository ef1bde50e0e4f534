"""The command: `python -m sft_jax.doctor`."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sft_jax.cli import Overrides, add_config_flags, make_parser, parse_with_overrides
from sft_jax.doctor.finding import MISSING, OK, Finding, Report
from sft_jax.doctor.installed import check_installed
from sft_jax.errors import UserError, run_command
from sft_jax.runtime.chips import TARGETS

SIZES = (32, 64, 96, 128, 224)
EXAMPLE = """examples:
  python -m sft_jax.doctor
  python -m sft_jax.doctor --config configs/cifar10.py --sizes
  python -m sft_jax.doctor --config configs/cifar10.py --target tpu-v5e-1 --batches 100 400

With --target the recipe's programs are compiled for a device that this machine need not have. It takes minutes: some
ten seconds for each batch size on a GPU, one to six minutes on a TPU.

Exits with code 2 if anything required is missing or does not compile, otherwise with 0.
"""
QUICK_START = (
    "python -m sft_jax.main --config configs/digits.py:source",
    "python -m sft_jax.main --config configs/digits.py",
)


def parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    """Returns the flags, and the overrides of the recipe's keys."""
    parser = make_parser(
        "python -m sft_jax.doctor", "Checks this machine, and estimates what a recipe would cost on it.", EXAMPLE
    )
    add_config_flags(parser, required=False)
    words = ", ".join(map(str, SIZES))
    parser.add_argument("--sizes", action="store_true", help=f"estimate costs at {words} px, not only at data.size")
    parser.add_argument("--target", choices=TARGETS, help="compile for this device instead, without having it")
    parser.add_argument(
        "--batches", type=_batch, nargs="+", default=[], metavar="N", help="with --target: also these batch sizes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, overrides = parse_with_overrides(parser, argv)
    if args.config is None and (overrides or args.sizes):
        parser.error("--sizes and --config.KEY require --config")
    if args.target and (args.config is None or args.sizes):
        parser.error("--target requires --config, and --config.data.size=PIXELS instead of --sizes")
    if args.batches and not args.target:
        parser.error("--batches requires --target")
    return args, overrides


def _batch(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no batch size")
    return int(text)


def main() -> None:
    """Runs all checks, prints them and the next commands to type. Raises UserError if anything is missing."""
    args, overrides = parse(sys.argv[1:])
    if args.target:
        compile_for(args, overrides)
        return
    report = Report()

    def tell(finding: Finding) -> None:
        report.findings.append(finding)
        if not args.json:
            print(finding, flush=True)

    for finding in check_installed():
        tell(finding)
    if report.usable:  # otherwise the imports below may fail
        examine(args, overrides, report, tell)
    commands = next_commands(args, report)
    if args.json:
        print(json.dumps(dataclasses.asdict(report) | {"next": commands, "usable": report.usable}))
    else:
        print("\nnext:", *(f"  {command}" for command in commands), sep="\n")
    if not report.usable:
        names = [finding.name for finding in report.findings if finding.mark == MISSING]
        raise UserError(f"missing: {', '.join(names)}; see the commands above")


def compile_for(args: argparse.Namespace, overrides: Overrides) -> None:
    """Compiles the recipe for the target and prints the report. Raises UserError if it does not compile."""
    from sft_jax.runtime.ahead import ask

    def tell(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    request = [args.target, args.config, overrides, args.batches]
    report = ask("sft_jax.doctor.ahead", args.target, request, tell)
    if args.json:
        print(json.dumps(report))
    if not report["compiles"]:
        raise UserError(f"{args.config} does not compile for {args.target}: {report['reason']}")


def examine(args: argparse.Namespace, overrides: Overrides, report: Report, tell: Callable[[Finding], None]) -> None:
    """Runs the checks that need the packages: devices, folders, and with --config its inputs, plan and costs."""
    from sft_jax.runtime.allocator import keep_freed_memory
    from sft_jax.runtime.cache import keep_compiled_programs

    keep_freed_memory()
    keep_compiled_programs()
    from sft_jax.config import default_config, load_config
    from sft_jax.doctor.inputs import check_data, check_weights
    from sft_jax.doctor.machine import check_cache, check_devices, check_disk
    from sft_jax.run.console import Console

    config = load_config(args.config, overrides) if args.config else default_config()
    for finding in (*check_devices(), check_cache(), check_disk(Path.cwd())):
        tell(finding)
    inputs = [check_data(config), check_weights(config)]
    for finding in inputs:
        # Without --config these are the CIFAR-10 recipe's, which the quick start does not need.
        tell(finding if args.config else finding.optional())
    if args.config and report.usable and all(finding.mark == OK for finding in inputs):
        from sft_jax.doctor.planned import add_plan

        add_plan(config, SIZES if args.sizes else (config.data.size,), report, Console(quiet=args.json))


def next_commands(args: argparse.Namespace, report: Report) -> list[str]:
    """Returns the commands to type next, in order."""
    return list(dict.fromkeys(_commands(args, report)))


def _commands(args: argparse.Namespace, report: Report) -> Iterator[str]:
    marks = {finding.mark for finding in report.findings}
    for finding in report.findings:
        if finding.mark == MISSING or MISSING not in marks:
            yield from finding.remedies
    if not report.usable:
        yield shlex.join(["python", "-m", "sft_jax.doctor", *sys.argv[1:]])
    elif args.config:
        flags = [flag for flag in sys.argv[1:] if flag not in ("--sizes", "--json")]
        yield shlex.join(["python", "-m", "sft_jax.main", *flags])
    else:
        yield from QUICK_START


if __name__ == "__main__":
    sys.exit(run_command(main))
