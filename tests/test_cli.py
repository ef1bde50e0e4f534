"""What the command lines have in common: overrides, and errors that say what to do."""

import pytest

from sft_jax.cli import add_config_flags, make_parser, parse_with_overrides
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
            "unrecognized arguments: --epochs=3; keys of the recipe are set with --config.epochs=VALUE",
        ),
        (["--config", "a.py", "--config.epochs"], "--config.epochs wants a value"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_to_do(parser, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_with_overrides(parser, words)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed == f"error: {message}; python -m sft_jax.main --help has all flags and an example\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("cifar10", "no config file 'cifar10'; recipes are Python files such as cifar10.py"),
        ("other.py", "no config file 'other.py'; recipes are Python files such as configs/cifar10.py"),
        ("epochs=3", "--config epochs=3 is no file; a key of a recipe is set with --config.epochs=3 (a dot after it)"),
    ],
)
def test_what_is_no_recipe(recipe, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10.py").touch()
    with pytest.raises(UserError) as caught:
        load_config(recipe)
    assert str(caught.value) == message


@pytest.mark.parametrize(("source", "meant"), [("cifar10", "tfds:cifar10"), ("flowers", "folder:flowers")])
def test_a_source_without_its_kind(source, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    config = complete({"data.source": source})
    with pytest.raises(UserError, match=f"did you mean {meant}\\?"):
        check_source(config.data)
