"""Tests of the shared parts of the command lines: overrides and error messages."""

from pathlib import Path

import pytest

from sft_jax.cli import add_config_flags, add_network_flags, make_parser, parse_with_overrides
from sft_jax.config import complete, load_config
from sft_jax.data import check_source
from sft_jax.errors import UserError


@pytest.fixture
def parser():
    parser = make_parser(
        "python -m sft_jax.main", "Trains.", "example:\n  python -m sft_jax.main --config configs/cifar10.py\n"
    )
    add_config_flags(parser)
    return parser


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "a.py", "--workdri", "x"], "unrecognized arguments: --workdri x"),
        (
            ["--config", "a.py", "--epochs=3"],
            "unrecognized arguments: --epochs=3; to set a key of the recipe, use --config.epochs=VALUE",
        ),
        (["--config", "a.py", "--config.epochs"], "--config.epochs needs a value"),
    ],
)
def test_wrong_usage_is_one_line_with_a_remedy(parser, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_with_overrides(parser, words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed == f"error: {message}; see python -m sft_jax.main --help for all flags and an example\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("cifar10", "no config file 'cifar10'; recipes are Python files such as cifar10.py"),
        ("other.py", "no config file 'other.py'; recipes are Python files such as configs/cifar10.py"),
        ("epochs=3", "--config epochs=3 is not a file; to set a key of the recipe, use --config.epochs=3 (with a dot)"),
    ],
)
def test_recipes_that_do_not_exist_are_refused(recipe, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10.py").touch()
    with pytest.raises(UserError) as caught:
        load_config(recipe)
    assert str(caught.value) == message


@pytest.mark.parametrize(("source", "meant"), [("cifar10", "tfds:cifar10"), ("flowers", "folder:flowers")])
def test_a_source_without_its_kind_is_refused_with_a_suggestion(source, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    config = complete({"data.source": source})
    with pytest.raises(UserError, match=f"did you mean {meant}\\?"):
        check_source(config.data)


def test_a_tilde_is_the_home_folder_in_any_path(tmp_path, monkeypatch):
    """Shells do not expand it after an equals sign or a colon."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = make_parser("python -m sft_jax.report", "Reports.", "")
    parser.add_argument("--compare", type=Path, nargs="+")
    add_network_flags(parser.add_argument_group(), workdir="a run")
    args = parser.parse_args(["--workdir=~/run", "--compare", "~/one", "two/~"])
    assert (args.workdir, args.compare) == (tmp_path / "run", [tmp_path / "one", Path("two/~")])
    values = {"init": "~/w.safetensors", "data.dir": "~/tfds", "data.source": "folder:~/flowers"}
    config = complete(values)
    assert config.init == f"{tmp_path}/w.safetensors"
    assert (config.data.dir, config.data.source) == (f"{tmp_path}/tfds", f"folder:{tmp_path}/flowers")
    assert complete({"data.source": "csv:~/a:~b.csv"}).data.source == f"csv:{tmp_path}/a:~b.csv"
    (tmp_path / "recipe.py").write_text("def get_config(arg=''):\n    return {'init': arg}")
    assert load_config("~/recipe.py:~/run").init == f"{tmp_path}/run"
