"""Tests of files of weights, and of initialising a network from them."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.weights import Weights, inherited_head, initialise, load_weights, save_weights

ARRAYS = {
    "conv1.kernel": np.arange(12, dtype=np.float32).reshape(2, 2, 1, 3),
    "bn1.mean": np.array([1, 2, 3], np.float32),
    "fc.kernel": np.ones((3, 5), np.float32),
    "fc.bias": np.zeros(5, np.float32),
}
PARAMS = {
    "conv1.kernel": jax.ShapeDtypeStruct((2, 2, 1, 3), jnp.float32),
    "fc.kernel": jnp.full((3, 5), 7.0),
    "fc.bias": jnp.full(5, 7.0),
}
STATS = {"bn1.mean": jax.ShapeDtypeStruct((3,), jnp.float32)}
RESNET = ARCHITECTURES["resnet18"]
NETWORK = types.SimpleNamespace(params=PARAMS, batch_stats=STATS, is_head=RESNET.is_head)


def one_line(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_saved_weights_are_loaded(tmp_path):
    path = tmp_path / "new folder" / "w.safetensors"
    arrays = ARRAYS | {"conv1.kernel": ARRAYS["conv1.kernel"].transpose(1, 0, 2, 3)}  # not contiguous
    save_weights(path, Weights(arrays, "resnet18", ("cat", "dög"), {"source": "here"}))
    loaded = load_weights(path)
    assert (loaded.arch, loaded.class_names, loaded.metadata["source"]) == ("resnet18", ("cat", "dög"), "here")
    assert loaded.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[key], array, strict=True)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]
    save_weights(path, Weights(arrays, "resnet18", None, {}))
    assert load_weights(path).class_names is None


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", None, {}))
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("sft_jax.runtime.files.os.replace", full)
    message = one_line(lambda: save_weights(path, Weights(ARRAYS, "resnet34", None, {})))
    assert message == f"{path} cannot be written: No space left on device"
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.read_bytes() == before


def test_a_missing_file_is_an_error_with_the_command_that_creates_it(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    message = one_line(lambda: load_weights(path))
    assert f"no weights at {path}; create them with: python convert/resnet_to_flax.py --output {path}" in message
    assert f"--output {path} " in one_line(lambda: load_weights(path.with_suffix(".pth")))


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", None, {}))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"hello, world"):
        path.write_bytes(damaged)
        assert f"{path} is damaged" in one_line(lambda: load_weights(path))
    safetensors.numpy.save_file({"conv1.weight": np.zeros(1)}, path)
    message = one_line(lambda: load_weights(path))
    assert f"has torch's keys; convert it with: python convert/resnet_to_flax.py --state-dict {path}" in message
    safetensors.numpy.save_file({"x": np.zeros(1)}, path, metadata={"format": "pt"})
    assert "is not a converted file" in one_line(lambda: load_weights(path))
    safetensors.numpy.save_file({"x": np.zeros(1)}, path, metadata={"format": "sft-jax 2"})
    assert "has format 'sft-jax 2', but this version of sft-jax reads 'sft-jax 1'" in one_line(
        lambda: load_weights(path)
    )
    torch_file = tmp_path / "w.pth"
    torch_file.write_bytes(b"anything")
    assert f"--state-dict {torch_file} --output {path}" in one_line(lambda: load_weights(torch_file))


def test_class_names_are_readable_by_other_programs(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", ("a", "b"), {}))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["class_names"]) == ["a", "b"]


def test_initialise_uses_all_arrays():
    params, stats = initialise(NETWORK, ARRAYS, source="w")
    assert (params.keys(), stats.keys()) == (PARAMS.keys(), STATS.keys())
    for key, leaf in (params | stats).items():
        np.testing.assert_array_equal(leaf, ARRAYS[key], strict=True)


@pytest.mark.parametrize("head", [{}, {"fc.kernel": np.ones((3, 9), np.float64), "fc.other": np.ones(1)}])
def test_a_new_head_is_kept_whatever_the_old_one_was(head):
    body = {key: array for key, array in ARRAYS.items() if not key.startswith("fc.")}
    fresh = {key: leaf for key, leaf in PARAMS.items() if key.startswith("fc.")}
    params, _ = initialise(NETWORK, body | head, source="w", head=fresh)
    assert params["fc.kernel"] is PARAMS["fc.kernel"]
    assert params["fc.bias"] is PARAMS["fc.bias"]
    assert params["conv1.kernel"] is ARRAYS["conv1.kernel"]
    assert params.keys() == PARAMS.keys()


def test_initialise_lists_all_problems_at_once():
    arrays = {
        "conv1.kernel": ARRAYS["conv1.kernel"].transpose(1, 0, 3, 2),
        "bn1.mean": ARRAYS["bn1.mean"].astype(np.float64),
        "fc.kernel": ARRAYS["fc.kernel"],
        "bn1.count": np.zeros(1, np.float32),
    }
    with pytest.raises(UserError) as caught:
        initialise(NETWORK, arrays, source="some.file")
    assert str(caught.value).splitlines() == [
        "the weights of some.file do not fit the network:",
        "  fc.bias is missing",
        "  bn1.count is unknown",
        "  bn1.mean is float64[3], not float32[3]",
        "  conv1.kernel is float32[2, 2, 3, 1], not float32[2, 2, 1, 3]",
    ]


# The columns of the kernel are the rows of torch's weight, one per class.
OLD_HEAD = {"fc.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.float32([10, 20, 30])}
OLD_NAMES = ("ant", "bee", "cat")


class TestInheritedHead:
    def inherited(self, names, old_names=OLD_NAMES, old=OLD_HEAD):
        fresh = {"fc.kernel": jnp.full((2, len(names)), -1.0), "fc.bias": jnp.full(len(names), -1.0)}
        head, said = inherited_head(Weights(old | {"bn1.mean": np.ones(3)}, "x", old_names, {}), names, fresh)
        return {key: np.asarray(array).tolist() for key, array in head.items()}, said

    def test_the_same_classes_keep_all_of_it(self):
        head, said = self.inherited(OLD_NAMES)
        assert head == {key: array.tolist() for key, array in OLD_HEAD.items()}
        assert said == " with its head"

    @pytest.mark.parametrize("old_names", [None, (), ("dog", "eel", "fox"), ("Ant", "bee ", "CAT")])
    def test_other_classes_keep_nothing_of_it(self, old_names):
        assert self.inherited(OLD_NAMES, old_names) == ({}, " with a new head")

    def test_rows_are_kept_by_class_name_when_a_class_is_added(self):
        head, said = self.inherited(("ant", "bee", "bird", "cat"))
        assert head == {"fc.kernel": [[0, 1, -1, 2], [3, 4, -1, 5]], "fc.bias": [10, 20, -1, 30]}
        assert said == "; head: 3 of 4 classes reused, new: bird"

    def test_rows_follow_their_class_when_labels_change(self):
        head, said = self.inherited(("cat", "ant", "bee"))
        assert head == {"fc.kernel": [[2, 0, 1], [5, 3, 4]], "fc.bias": [30, 10, 20]}
        assert said == "; head: 3 of 3 classes reused"

    def test_new_and_dropped_classes_are_reported(self):
        head, said = self.inherited(("cat", *"defgh"))
        assert head["fc.bias"] == [30, -1, -1, -1, -1, -1]
        assert said == ("; head: 1 of 6 classes reused, new: d, e, f and 2 more; dropped: ant, bee")

    def test_an_ambiguous_name_matches_no_output(self):
        head, said = self.inherited(("crane", "cat"), ("crane", "crane", "cat"))
        assert head == {"fc.kernel": [[-1, 2], [-1, 5]], "fc.bias": [-1, 30]}
        assert said.startswith("; head: 1 of 2 classes reused, new: crane")

    @pytest.mark.parametrize(
        "old", [{}, {"fc.bias": OLD_HEAD["fc.bias"]}, OLD_HEAD | {"fc.kernel": np.ones((3, 3), np.float32)}]
    )
    def test_a_head_of_another_shape_is_not_used(self, old):
        assert self.inherited(("ant", "fox"), old=old) == ({}, " with a new head")


def test_weights_without_a_head_cannot_predict():
    body = {key: array for key, array in ARRAYS.items() if not key.startswith("fc.")}
    message = one_line(lambda: initialise(NETWORK, body, source="w.safetensors"))
    assert message == (
        "the weights of w.safetensors have no head and therefore no classes; fine-tune them first, with "
        "--config.init=w.safetensors"
    )


def test_many_problems_are_counted():
    arrays = ARRAYS | {f"extra{index}": np.zeros(1, np.float32) for index in range(220)}
    with pytest.raises(UserError) as caught:
        initialise(NETWORK, arrays, source="w")
    assert len(str(caught.value).splitlines()) == 7
    assert str(caught.value).endswith("and 215 more")


class TestStem:
    def weights(self, size, **metadata):
        return Weights({"conv1.kernel": np.zeros((size, size, 3, 64), np.float32)}, "resnet18", None, metadata)

    def test_it_is_recorded_or_follows_from_the_shapes(self):
        assert self.weights(7).stem == "imagenet"
        assert self.weights(7, stem="cifar").stem == "cifar"
        assert self.weights(3).stem == "cifar3x3"
        assert Weights({}, "resnet18", None, {}).stem == "imagenet"

    def test_another_kernel_is_refused_with_the_flag_to_use(self):
        message = one_line(lambda: RESNET.check_stem(self.weights(3).arrays, "imagenet", source="w"))
        assert message == (
            "the weights of w have a 3x3 stem, but model.stem=imagenet is 7x7; use --config.model.stem=cifar3x3"
        )
        message = one_line(lambda: RESNET.check_stem(self.weights(7).arrays, "cifar3x3", source="w"))
        assert message.endswith("use --config.model.stem=imagenet")

    def test_both_stems_take_the_same_kernel(self):
        RESNET.check_stem(self.weights(7).arrays, "imagenet", source="w")
        RESNET.check_stem(self.weights(7).arrays, "cifar", source="w")
        RESNET.check_stem(self.weights(3).arrays, "cifar3x3", source="w")
