"""Tests that accepted settings of every kind survive a round trip through config.json."""

import json
import string

import numpy as np
import pytest
from fuzzing import refusals, tries
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import builder

from sft_jax import data
from sft_jax.config import complete, flatten, load_config
from sft_jax.config.recipe import config_name, parse_value
from sft_jax.config.schema import KEYS
from sft_jax.errors import UserError
from sft_jax.models import Network
from sft_jax.training import phases

KEY = st.one_of(
    st.sampled_from(list(KEYS)),
    st.builds(lambda name, extra: name + extra, st.sampled_from(list(KEYS)), st.text(max_size=3)),
    st.text(max_size=20),
)
TEXT = st.one_of(
    st.text(max_size=20),
    st.text(string.printable, max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["nan", "-inf", "1e999", "9" * 5000, "0x10", "1_0", "١", "none", "True", "", " ", "fc.*=nan", "(=1"]
    ),
    st.lists(st.floats().map(str), min_size=2, max_size=4).map(",".join),
    st.lists(st.tuples(st.text(max_size=5), st.floats().map(str)).map("=".join), max_size=3).map(";".join),
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=6,
)


def assert_kept(config):
    """A resumed run gets its original settings from config.json."""
    assert complete(flatten(json.loads(json.dumps(config.to_dict())))) == config
    for name, value in flatten(config).items():
        assert type(value) in (KEYS[name].kind, type(None)), name


@given(name=KEY, text=TEXT)
@tries(300)
def test_overrides(name, text):
    with refusals() as said:
        config = complete({name: parse_value(name, text)})
    if said:
        assert "\n" not in said[0].replace(repr(text), "")
    else:
        assert_kept(config)


@given(values=st.dictionaries(KEY, VALUE, max_size=3))
@tries(300)
def test_values_of_a_recipe(values):
    with refusals() as said:
        config = complete(values)
    if not said:
        assert_kept(config)


@given(text=st.text(max_size=60))
@tries(50)
def test_recipes_that_are_no_python(tmp_path, text):
    """A mistake in a recipe is reported in one line with its location."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"def get_config(arg=''): return {{}}\n\n{text}", encoding="utf-8", errors="surrogatepass")
    with refusals() as said:
        assert load_config(str(recipe)) == complete({})
    assert not said or str(recipe) in said[0]


PATTERNS = st.one_of(
    st.sampled_from(["fc.*", ".*", "(", "[", "*", "layer1.*", "(?i)FC.*", "(a+)+$", ""]), st.text(max_size=6)
)
NETWORK = Network.abstract(builder(5))


@given(
    freeze=st.lists(PATTERNS, max_size=2),
    rates=st.lists(st.tuples(PATTERNS, st.floats(0, 10)), max_size=3),
    method=st.sampled_from(["full", "head", "head_then_full", "gradual"]),
    epochs=st.integers(1, 12),
    head_epochs=st.integers(1, 12),
)
@tries(100)
def test_phases_cover_every_epoch(freeze, rates, method, epochs, head_epochs):
    values = {"finetune.freeze": freeze, "finetune.learning_rates": rates, "finetune.method": method}
    with refusals() as said:
        config = complete(values | {"epochs": epochs, "finetune.head_epochs": head_epochs})
        found = phases.phases(config, NETWORK)
    if not said:
        covered = [epoch for phase in found for epoch in range(phase.first, phase.stop)]
        assert covered == list(range(epochs))
        assert all(phase.trained <= NETWORK.params.keys() and phase.trained for phase in found)


@given(
    source=st.one_of(
        st.text(max_size=12),
        st.builds("{}:{}".format, st.sampled_from(["digits", "folder"]), st.text(max_size=8)),
        st.builds("digits:{}-{}".format, st.integers(-2, 12), st.integers(-2, 12)),
    ),
    seed=st.integers(0, 2**70),
    limit=st.one_of(st.none(), st.integers(1, 2**70)),
    per_class=st.one_of(st.none(), st.integers(1, 2**70)),
)
@tries(15)
def test_sources(tmp_path, monkeypatch, source, seed, limit, per_class):
    monkeypatch.chdir(tmp_path)
    with refusals() as said:
        config = complete({"data.source": source, "data.per_class": per_class})
        found = data.load_dataset(config.data, seed=seed, limit_train=limit, limit_eval=limit)
    if not said:
        for split in (found.train, found.validation, found.test):
            assert 0 < len(split) <= (limit or np.inf)
            assert set(split.labels) <= set(range(len(found.class_names)))


def test_mistakes_in_recipes_are_located(tmp_path):
    recipe = tmp_path / "recipe.py"
    for text, said in {
        "def get_config(arg=''):\n    return {'epochs': 1 / 0}": "line 2: ZeroDivisionError: division by zero",
        "import math\n\ndef get_config(": "line 3: SyntaxError: '(' was never closed",
    }.items():
        recipe.write_text(text)
        with pytest.raises(UserError) as caught:
            load_config(str(recipe))
        assert str(caught.value).startswith(f"{recipe}, {said}")
    recipe.write_text("def get_config(arg=''):\n    return 3")
    with pytest.raises(UserError, match="has no get_config.* that returns a config"):
        load_config(str(recipe))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", "x y"])
def test_a_runs_folder_stays_in_runs(tmp_path, name):
    """The default workdir is named after a recipe and its argument."""
    folder = (tmp_path / "runs" / config_name(f"configs/digits.py:{name}")).resolve()
    assert folder.parent == tmp_path / "runs"


@pytest.mark.parametrize("name", ["../../cifar10", "/etc/passwd", "cifar10/../../x", "..", "a\0b"])
def test_no_dataset_lies_outside_its_folder(tmp_path, name):
    place = tmp_path / "tfds"
    place.mkdir()
    config = complete({"data.source": f"tfds:{name}", "data.dir": str(place), "data.download": False})
    with pytest.raises(UserError):
        data.load_dataset(config.data, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["tfds"]
    assert not list(place.iterdir())
