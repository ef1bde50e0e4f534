"""Tests of recipes, overrides and the values of config keys."""

import pytest
from image_folders import fill

from sft_jax.config import check_argument, complete, default_config, flatten, load_config
from sft_jax.config.recipe import KEYS, config_name, parse_value
from sft_jax.errors import UserError


def recipe(tmp_path, body: str) -> str:
    file = tmp_path / "recipe.py"
    file.write_text(f"from sft_jax.config.recipe import default_config\ndef get_config(arg=''):\n{body}")
    return str(file)


def test_defaults_are_valid():
    assert flatten(complete({})) == {name: key.default for name, key in KEYS.items()}
    assert flatten(default_config()) == flatten(complete({}))


def test_recipes_take_an_argument_and_overrides(tmp_path):
    path = recipe(tmp_path, "    c = default_config(); c.init = arg; c.data.per_class = 3; return c")
    overrides = [
        ("epochs", "7"),
        ("optimizer.learning_rate", "1"),
        ("data.mean", "0.1,0.2,0.3"),
        ("data.flip", "False"),
        ("data.per_class", "none"),
        ("limit_train_examples", "50"),
        ("data.dir", "/some/where"),
    ]
    config = load_config(f"{path}:hello", overrides)
    assert (config.init, config.epochs, config.optimizer.learning_rate) == ("hello", 7, 1.0)
    assert (config.data.mean, config.data.flip, config.data.per_class) == ((0.1, 0.2, 0.3), False, None)
    assert (config.limit_train_examples, config.data.dir) == (50, "/some/where")
    with pytest.raises(AttributeError):
        config.new_key = 1


def test_a_recipe_may_set_only_some_keys(tmp_path):
    path = recipe(tmp_path, "    return {'epochs': 3, 'optimizer': {'learning_rate': 1}}")
    assert load_config(path).optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("epoch", "3", "unknown config key 'epoch'; did you mean 'epochs'"),
        ("optimizer.learning_rat", "3", "did you mean 'optimizer.learning_rate'"),
        ("data", "3", "unknown config key 'data'"),
        ("epochs", "x", "config.epochs='x' is not an integer"),
        ("epochs", "1.5", "is not an integer"),
        ("epochs", "0", "config.epochs=0 must be greater than 0"),
        ("data.flip", "maybe", "is not true or false"),
        ("data.mean", "1,2", "must be three numbers"),
        ("data.mean", "a,b,c", "is not a list of numbers"),
        ("data.std", "1,0,1", "must be three numbers greater than 0"),
        ("data.std", "1,nan,1", "must be three numbers greater than 0"),
        ("optimizer.learning_rate", "nan", "must be 0 or more"),
        ("optimizer.learning_rate", "inf", "must be 0 or more"),
        ("optimizer.momentum", "1", "must be at least 0 and less than 1"),
        ("precision", "float16", "must be one of float32, highest, tf32, bfloat16"),
        ("model.stem", "tiny", "must be one of imagenet, cifar"),
        ("limit_train_examples", "0", "must be greater than 0"),
    ],
)
def test_bad_values_are_refused_with_one_line(tmp_path, key, text, message):
    path = recipe(tmp_path, "    return default_config()")
    with pytest.raises(UserError) as caught:
        load_config(path, [(key, text)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_recipes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no config file 'nowhere.py'"):
        load_config("nowhere.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no get_config"):
        load_config(str(tmp_path / "empty.py"))
    with pytest.raises(UserError, match="unknown config key 'epoch'; did you mean 'epochs'"):
        load_config(recipe(tmp_path, "    c = default_config(); c.epoch = 3; return c"))
    with pytest.raises(UserError, match="config.epochs='3' is not an integer"):
        load_config(recipe(tmp_path, "    return {'epochs': '3'}"))


def test_the_name_of_a_config_has_the_argument():
    assert config_name("configs/digits.py:source") == "digits_source"
    assert config_name("/a/b/cifar10.py") == "cifar10"


@pytest.mark.parametrize("path", ["configs/cifar10.py", "configs/digits.py", "configs/digits.py:source"])
def test_shipped_recipes_are_valid(path, pytestconfig):
    load_config(str(pytestconfig.rootpath / path))


def test_every_recipe_is_a_config(pytestconfig, tmp_path):
    paths = sorted((pytestconfig.rootpath / "configs").glob("*.py"))
    assert len(paths) >= 6
    fill(tmp_path, ["ant", "bee"], 10)
    for path in paths:
        argument = f":{tmp_path}" if path.stem == "folder" else ""
        load_config(f"{path}{argument}")
        with pytest.raises(UserError, match=r"unknown argument 'sorce' after .*|there is no folder 'sorce'"):
            load_config(f"{path}:sorce")


def test_unknown_arguments_of_a_recipe_are_refused():
    check_argument("")
    check_argument("source", "source")
    with pytest.raises(
        UserError, match="^unknown argument 'sorce' after the recipe's colon; this recipe accepts only 'source'$"
    ):
        check_argument("sorce", "source")
    with pytest.raises(UserError, match="^unknown argument 'x' after the recipe's colon; this recipe accepts none$"):
        check_argument("x")


def test_a_long_value_is_shortened_in_its_message():
    with pytest.raises(UserError, match=r"config\.seed='9{99}\.\.\. \(5,002 characters\) is not an integer"):
        parse_value("seed", "9" * 5000)
