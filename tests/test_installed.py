"""Tests of an installed wheel: its files, and that its command works like the modules."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from children import environment

from sft_jax import command
from sft_jax.config.shipped import recipe_file

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--config.epochs=1", "--config.limit_train_examples=100", "--config.batch_size=50"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, built from the sdist as package indexes do."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, "sdist", folder)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xf", sdist, "-C", folder], check=True)
    build(folder / sdist.name.removesuffix(".tar.gz"), "wheel", folder)
    return next(folder.glob("*.whl"))


def build(source, target, folder):
    arguments = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(arguments, cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Returns a function that runs `sft-jax` in an empty folder, with the wheel instead of the checkout."""
    site, here = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(site)
    start = "import sys; sys.argv[0] = 'sft-jax'; from sft_jax.command import main; main()"

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", start, *arguments],
            cwd=here,
            env=environment(PYTHONPATH=str(site)),
            capture_output=True,
            text=True,
            timeout=300,
        )

    run.here = here
    return run


def test_the_wheel_contains_recipes_and_converters_and_nothing_else(built):
    with zipfile.ZipFile(built) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    for folder in ("configs", "convert"):
        wanted = {f"sft_jax/_shipped/{folder}/{path.name}" for path in (ROOT / folder).glob("*.py")}
        assert wanted == {
            name for name in names if name.startswith(f"sft_jax/_shipped/{folder}/") and name[-3:] == ".py"
        }
    assert "sft_jax/report/templates/report.html" in names
    assert not [name for name in names if "__pycache__" in name or not name.startswith("sft_jax/")]


@pytest.mark.slow
def test_the_quick_start_runs_without_a_checkout(installed):
    alone = ["--config.compare_with_scratch=False", "--config.finetune.method=head"]  # which compiles much less
    for recipe, folder, flags in (("digits:source", "digits_source", []), ("digits", "digits", alone)):
        done = installed("train", recipe, *QUICK, *flags, "--quiet")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "test accuracy" in done.stdout
        assert (installed.here / "runs" / folder / "results.json").exists()


@pytest.mark.slow
def test_the_converter_runs_without_a_checkout(installed):
    done = installed("convert", "--state-dict", "nothing.pth", "--output", "w.safetensors")
    assert (done.returncode, done.stderr) == (2, "error: no such file: nothing.pth\n")
    done = installed("train", "cifar10", "--quiet")
    assert done.returncode == 2
    assert "create them with: sft-jax convert --output weights/resnet18.safetensors" in done.stderr


def test_a_path_takes_precedence_over_a_recipe_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("cifar10") == ROOT / "configs" / "cifar10.py"
    (tmp_path / "cifar10").write_text("")
    assert recipe_file("cifar10") == Path("cifar10")
    assert recipe_file("../configs/cifar10") == Path("../configs/cifar10")
    assert recipe_file("none_of_ours") == Path("none_of_ours")


@pytest.mark.parametrize("flags", [[], ["--help"]])
def test_help_lists_commands_and_recipes(capsys, monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["sft-jax", *flags])
    command.main()
    printed = capsys.readouterr().out
    for name in (*command.COMMANDS, "cifar10_fast", "digits"):
        assert name in printed


def test_an_unknown_command_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft-jax", "trian"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: unknown command 'trian'; did you mean sft-jax train?\n"


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_answers_help(name):
    start = f"import sys; sys.argv = ['sft-jax', {name!r}, '--help']; from sft_jax.command import main; main()"
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout
