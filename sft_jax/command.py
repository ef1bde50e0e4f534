"""The console command: `sft-jax train cifar10` is short for `python -m sft_jax.main --config configs/cifar10.py`."""

import difflib
import runpy
import sys

import sft_jax
from sft_jax.config.shipped import shipped
from sft_jax.errors import UserError, run_command

# Command -> module, or file in convert/.
COMMANDS = {
    "train": "sft_jax.main",
    "convert": "resnet_to_flax.py",
    "evaluate": "sft_jax.evaluate",
    "predict": "sft_jax.predict",
    "report": "sft_jax.report",
    "search": "sft_jax.search",
    "export": "sft_jax.export",
    "to-torch": "flax_to_resnet.py",
    "to-onnx": "flax_to_onnx.py",
    "doctor": "sft_jax.doctor",
    "benchmark": "sft_jax.benchmark",
    "models": "sft_jax.models",
    "embed": "sft_jax.embed",
    "inspect": "sft_jax.inspect",
    "fit": "sft_jax.fit",
}
# Commands whose first positional argument may be a recipe.
WITH_RECIPE = ("train", "search", "doctor")
USAGE = f"""usage: sft-jax COMMAND ...

commands: {", ".join(COMMANDS)}
See sft-jax COMMAND --help for flags and examples.

examples:
  sft-jax train digits:source && sft-jax train digits
  sft-jax convert --output weights/resnet18.safetensors
  sft-jax train cifar10 --config.epochs=20 --workdir runs/short

A recipe is a file or one of the built-in recipes: {{recipes}}.
"""


def main() -> None:
    """Runs the command given on the command line."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        names = sorted(path.stem for path in shipped("configs").glob("*.py"))
        print(USAGE.format(recipes=", ".join(names)), end="")
    elif sys.argv[1:] == ["--version"]:
        print(f"sft-jax {sft_jax.__version__}")
    elif sys.argv[1] in COMMANDS:
        _run(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(run_command(_refuse))


def _run(name: str, arguments: list[str]) -> None:
    if name in WITH_RECIPE and arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    target = COMMANDS[name]
    sys.argv = [f"sft-jax {name}", *arguments]
    if target.endswith(".py"):
        runpy.run_path(str(shipped("convert") / target), run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def _refuse() -> None:
    near = difflib.get_close_matches(sys.argv[1], COMMANDS, n=1, cutoff=0.0)[0]
    raise UserError(f"unknown command {sys.argv[1]!r}; did you mean sft-jax {near}?")
