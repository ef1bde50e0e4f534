"""Tests of the command line: flags, exit codes, and one-line errors for usage mistakes."""

import os
import signal
import subprocess
import sys

import pytest

from sft_jax.errors import DivergedError, StoppedError, UserError, run_command
from sft_jax.main import main, parse


def run_main(monkeypatch, capsys, *flags):
    """Runs the command; returns the exit code and stderr."""
    monkeypatch.setattr(sys, "argv", ["main", *flags])
    code = run_command(main)
    return code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipes(pytestconfig):
    return pytestconfig.rootpath / "configs"


def test_overrides_have_two_spellings():
    args, overrides = parse(
        ["--config", "a.py", "--config.epochs=3", "--resume", "--config.init", "x=y", "--config.a.b=c=d"]
    )
    assert args.config == "a.py"
    assert args.resume
    assert args.workdir is None
    assert overrides == [("epochs", "3"), ("init", "x=y"), ("a.b", "c=d")]


@pytest.mark.parametrize(
    "flags",
    [[], ["--config"], ["--config", "a.py", "--workdri", "x"], ["--config", "a.py", "--config.epochs"]],
    ids=["none", "no value", "misspelt", "override without a value"],
)
def test_wrong_flags_exit_with_2(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_help_lists_flags_and_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--config", "--config.KEY", "--workdir", "--resume", "default: runs/<config name>"):
        assert flag in text
    assert "python -m sft_jax.main --config configs/cifar10.py" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.epochz=3"], "unknown config key 'epochz'; did you mean 'epochs'"),
        (["--config.epochs=many"], "config.epochs='many' is not an integer"),
        (["--config.batch_size=100"], "batch_size=100 does not divide evenly over 8 devices"),
        (["--config.init=w.safetensors"], "python convert/resnet_to_flax.py --output w.safetensors"),
        (["--config.data.source=imagenet", "--config.init=scratch"], "must be one of tfds:NAME, folder:PATH, csv:FILE"),
        (["--config.data.source=folder:nowhere", "--config.init=scratch"], "nowhere"),
        (["--config.model.name=resnet19", "--config.init=scratch"], "did you mean 'resnet18'"),
        (["--config.init=."], "contains no run"),
    ],
    ids=["key", "value", "batch", "weights", "source", "folder", "model", "run"],
)
def test_wrong_input_is_one_line_and_exit_code_2(flags, message, recipes, monkeypatch, capsys, tmp_path):
    defaults = ["--config", f"{recipes}/digits.py:source", "--config.init=scratch"]
    code, error = run_main(monkeypatch, capsys, *defaults, *flags)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_missing_recipe_is_named(monkeypatch, capsys):
    code, error = run_main(monkeypatch, capsys, "--config", "configs/nothing.py")
    assert (code, error) == (
        2,
        "error: no config file 'configs/nothing.py'; recipes are Python files such as configs/cifar10.py\n",
    )


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (UserError("wrong"), 2, "error: wrong\n"),
        (DivergedError("nan"), 3, "error: nan\n"),
        (StoppedError("stopped"), 4, "stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_have_exit_codes(raised, code, printed, capsys):
    def command():
        raise raised

    assert run_command(command) == code
    assert capsys.readouterr().err == printed


def test_a_bug_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.fixture
def unread():
    """Runs Python code as a command with a closed standard output; returns its exit code and stderr."""

    def run(body):
        code = f"import rich.console, sys\nfrom sft_jax import cli, errors\ndef command():\n    {body}\n"
        code += "sys.exit(errors.run_command(command))"
        reading, writing = os.pipe()
        os.close(reading)
        pipes = {"stdout": writing, "stderr": subprocess.PIPE, "env": os.environ | {"PYTHONUNBUFFERED": ""}}
        done = subprocess.run([sys.executable, "-c", code], **pipes, text=True, timeout=60, check=False)
        os.close(writing)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("for number in range(10**5): print(number)", ""),
        ("print('what waits for the end')", ""),
        ("rich.console.Console().print('at once')", ""),
        ("print('as argparse does'); sys.exit(0)", ""),
        ("print('a row'); raise errors.UserError('wrong')", "error: wrong\n"),
    ],
    ids=["much", "little", "rich", "exit", "a refusal"],
)
def test_a_closed_output_ends_the_command_quietly(body, said, unread):
    """For example after `| head` has exited."""
    assert unread(body) == (128 + signal.SIGPIPE, said)


def test_another_broken_pipe_is_a_bug(unread):
    code, said = unread("sys.stdout = sys.stderr; raise BrokenPipeError('of a worker')")
    assert code == 1
    assert said.endswith("BrokenPipeError: of a worker\n")


def test_a_command_runs_without_standard_output():
    command = [sys.executable, "-c", "import sys; from sft_jax.errors import *; sys.exit(run_command(print))"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_returns_the_exit_code(tmp_path):
    """`python -m` returns the exit code and prints no traceback."""
    command = [sys.executable, "-m", "sft_jax.main", "--config", "no.py"]
    done = subprocess.run(command, env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no config file 'no.py'")
    assert done.stdout == ""
