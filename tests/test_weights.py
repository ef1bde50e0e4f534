import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sft_jax.errors import UserError
from sft_jax.weights import Weights, initialise, keeps_head, load_weights, save_weights

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


def one_line(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_saved_is_loaded(tmp_path):
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


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", None, {}))
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("sft_jax.weights.os.replace", full)
    message = one_line(lambda: save_weights(path, Weights(ARRAYS, "resnet34", None, {})))
    assert message == f"{path} cannot be written: No space left on device"
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.read_bytes() == before


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    message = one_line(lambda: load_weights(path))
    assert f"no weights at {path}; make them with: python convert/resnet_to_flax.py --output {path}" in message
    assert f"--output {path} " in one_line(lambda: load_weights(path.with_suffix(".pth")))


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", None, {}))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"hello, world"):
        path.write_bytes(damaged)
        assert f"{path} is damaged" in one_line(lambda: load_weights(path))
    safetensors.numpy.save_file({"conv1.weight": np.zeros(1)}, path)
    message = one_line(lambda: load_weights(path))
    assert f"has torch's keys; convert it first with: python convert/resnet_to_flax.py --state-dict {path}" in message
    safetensors.numpy.save_file({"x": np.zeros(1)}, path, metadata={"format": "pt"})
    assert "is no converted file" in one_line(lambda: load_weights(path))
    safetensors.numpy.save_file({"x": np.zeros(1)}, path, metadata={"format": "sft-jax 2"})
    assert "has the format 'sft-jax 2', this version of sft-jax reads 'sft-jax 1'" in one_line(
        lambda: load_weights(path)
    )
    torch_file = tmp_path / "w.pth"
    torch_file.write_bytes(b"anything")
    assert f"--state-dict {torch_file} --output {path}" in one_line(lambda: load_weights(torch_file))


def test_class_names_are_readable_by_others(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", ("a", "b"), {}))
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["class_names"]) == ["a", "b"]


def test_initialise_takes_everything_over():
    params, stats = initialise(PARAMS, STATS, ARRAYS, source="w", keep_head=True)
    assert (params.keys(), stats.keys()) == (PARAMS.keys(), STATS.keys())
    for key, leaf in (params | stats).items():
        np.testing.assert_array_equal(leaf, ARRAYS[key], strict=True)


@pytest.mark.parametrize("head", [{}, {"fc.kernel": np.ones((3, 9), np.float64), "fc.other": np.ones(1)}])
def test_a_new_head_stays_fresh_whatever_the_old_one_was(head):
    body = {key: array for key, array in ARRAYS.items() if not key.startswith("fc.")}
    params, _ = initialise(PARAMS, STATS, body | head, source="w", keep_head=False)
    assert params["fc.kernel"] is PARAMS["fc.kernel"]
    assert params["fc.bias"] is PARAMS["fc.bias"]
    assert params["conv1.kernel"] is ARRAYS["conv1.kernel"]
    assert params.keys() == PARAMS.keys()


def test_initialise_lists_every_problem_at_once():
    arrays = {
        "conv1.kernel": ARRAYS["conv1.kernel"].transpose(1, 0, 3, 2),
        "bn1.mean": ARRAYS["bn1.mean"].astype(np.float64),
        "fc.kernel": ARRAYS["fc.kernel"],
        "bn1.count": np.zeros(1, np.float32),
    }
    with pytest.raises(UserError) as caught:
        initialise(PARAMS, STATS, arrays, source="some.file", keep_head=True)
    assert str(caught.value).splitlines() == [
        "the weights of some.file do not fit the network:",
        "  fc.bias is missing",
        "  bn1.count is unknown",
        "  bn1.mean is float64[3], not float32[3]",
        "  conv1.kernel is float32[2, 2, 3, 1], not float32[2, 2, 1, 3]",
    ]


def test_a_head_is_kept_only_for_the_same_known_classes():
    assert keeps_head(("a", "b"), ("a", "b"))
    assert not keeps_head(("a", "b"), ("b", "a"))
    assert not keeps_head(("a", "b"), ("a", "b", "c"))
    assert not keeps_head(None, ("a", "b"))
