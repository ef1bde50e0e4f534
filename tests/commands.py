"""Commands of the package, run within the tests' process."""

import sys

from sft_jax.errors import run_command


def called(monkeypatch, capsys, main, *words):
    """Runs `main` with a command line; returns the exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    code = run_command(main)
    return code, *capsys.readouterr()
