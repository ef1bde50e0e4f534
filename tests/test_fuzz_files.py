"""Tests that damaged, malicious and foreign weights and checkpoints are rejected or read exactly, and not modified."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import contents, damages, refusals, tries, write
from hypothesis import given
from hypothesis import strategies as st

from convert import keys, sources
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import Network
from sft_jax.models.architecture import Builder
from sft_jax.models.resnet import BasicBlock, Variant, architecture
from sft_jax.models.weights import FORMAT, Weights, load_weights, save_weights
from sft_jax.run.checkpoints import Checkpoints
from sft_jax.run.folder import Run
from sft_jax.run.weights import load_run_weights

ARRAYS = {
    "conv1.kernel": np.sqrt(np.arange(27, dtype=np.float32)).reshape(3, 3, 1, 3),
    "bn1.mean": np.array([0.5, -2, 1e-30], np.float32),
    "fc.bias": np.array([0.1, 1e30], np.float32),
}


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(np.asarray(actual[key]), np.asarray(array), err_msg=key, strict=True)


# --- Converted weights


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, Weights(ARRAYS, "resnet18", ("cat", "dög"), {"source": "x"}))
    return path


@given(damage=damages())
@tries(150)
def test_damaged_weights(converted, tmp_path, damage):
    path = tmp_path / "w.safetensors"
    shutil.copy(converted, path)
    write(path, damage(path.read_bytes()))
    before = contents(tmp_path)
    with refusals() as said:
        found = load_weights(path)
    assert contents(tmp_path) == before
    if not said:
        assert_same(found.arrays, ARRAYS)
        assert (found.arch, found.class_names) == ("resnet18", ("cat", "dög"))


HEADERS = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(
        st.sampled_from(["__metadata__", "fc.bias", "a", "../../a"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.dictionaries(st.sampled_from(["format", "arch", "class_names", "digest"]), st.text(max_size=9)),
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "I64", "BOOL", "X"]),
                    "shape": st.lists(st.integers(-1, 2**62), max_size=3),
                    "data_offsets": st.tuples(st.integers(-1, 2**62), st.integers(-1, 2**62)),
                }
            ),
        ),
        max_size=4,
    ).map(lambda header: json.dumps(header).encode()),
)


@given(header=HEADERS, length=st.one_of(st.none(), st.integers(0, 2**64 - 1)), data=st.binary(max_size=32))
@tries(150)
def test_any_header(tmp_path, header, length, data):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    with pytest.raises(UserError):
        load_weights(path)


@pytest.mark.parametrize(
    "facts",
    [{}, {"arch": "resnet18"}, {"arch": "resnet18", "class_names": "["}, {"arch": "resnet18", "class_names": "3"}],
    ids=["none", "no names", "not JSON", "not a list"],
)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_missing_and_wrong_metadata_is_refused(tmp_path, facts, dtype):
    size = {"F32": 4, "BF16": 2}[dtype]
    tensor = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": FORMAT} | facts, "fc.bias": tensor}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(UserError, match="is damaged"):
        load_weights(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(ARRAYS | {"fc.bias": np.array([0, value], np.float32)}, "resnet18", None, {}))
    with pytest.raises(UserError, match=r"contains NaN or infinite values in fc\.bias"):
        load_weights(path)


# --- state_dicts


@pytest.fixture(scope="module")
def network():
    return Network.abstract(Builder(architecture("small", Variant(BasicBlock, (1, 1, 0, 0))), 3))


@pytest.fixture(scope="module")
def state_dict(network):
    leaves = (network.params | network.batch_stats).items()
    return keys.to_torch({key: np.full(leaf.shape, 0.5, leaf.dtype) for key, leaf in leaves}, network.architecture)


def broken(tensor, kind):
    """Returns `tensor` changed in a way that is detected."""
    return {
        "double": lambda: tensor.double(),
        "half": lambda: tensor.bfloat16(),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "integers": lambda: tensor.long(),
        "complex": lambda: tensor.to(torch.complex64),
        "sparse": lambda: tensor.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        "nan": lambda: torch.full_like(tensor.float(), torch.nan),
        "transposed": lambda: tensor.float().unsqueeze(0),
        "immense": lambda: tensor.flatten()[:1].expand(2**40),
    }[kind]()


BROKEN = ("double", "half", "float8", "integers", "complex", "sparse", "quantized", "nan", "transposed", "immense")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # a deprecation
@given(seed=st.integers(0, 2**32 - 1), place=st.floats(0, 1), change=st.sampled_from(["drop", "rename", *BROKEN]))
@tries(40)
def test_state_dicts_that_do_not_fit(network, state_dict, seed, place, change):
    """The order of keys does not matter; any other difference is reported."""
    shuffled = {key: state_dict[key] for key in np.random.default_rng(seed).permutation(list(state_dict)).tolist()}
    assert keys.problems(shuffled, network) == []
    needed = [key for key in state_dict if not key.endswith(keys.COUNTER)]
    name = needed[int(place * (len(needed) - 1))]
    tensor = shuffled.pop(name)
    if change == "rename":
        shuffled["module." + name] = tensor
    elif change != "drop":
        shuffled[name] = broken(tensor, change)
    found = keys.problems(shuffled, network)
    assert found
    assert all(name in line for line in found)


@given(damage=damages(names=("empty", "truncate", "flip", "insert", "swap")), zipped=st.booleans())
@tries(60)
def test_damaged_state_dicts(tmp_path, damage, zipped):
    tensors = {"a": torch.arange(50.0), "b": torch.ones(3, 4)}
    path = tmp_path / "w.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damage(path.read_bytes()))
    before = contents(tmp_path)
    with refusals() as said:
        found = sources.read(path).state_dict
    assert contents(tmp_path) == before
    if not said and zipped and damage.__name__.startswith("flip"):
        # A zip file has a checksum of everything in it, which torch does not look at.
        assert all(torch.equal(found[key], tensors[key]) for key in found.keys() & tensors.keys())


class Hostile:
    def __init__(self, place):
        self._place = place

    def __reduce__(self):
        return os.mkdir, (self._place,)


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"a": it}, lambda it: {"state_dict": {"a": [it]}}])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "safetensors", "image", "checkpoint"])
def test_no_pickle_is_executed(tmp_path, form, wrap):
    place = tmp_path / "was-here"
    hostile = wrap(Hostile(str(place)))
    path = tmp_path / {"safetensors": "w.safetensors", "image": "w.png"}.get(form, "w.pth")
    if form in ("zip", "legacy"):
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(hostile))
    if form == "checkpoint":
        Checkpoints(tmp_path / "run").save("latest", 1, ARRAYS, {})
        for file in [file for file in (tmp_path / "run").rglob("*") if file.is_file()]:
            shutil.copy(path, file)
        with pytest.raises(UserError, match="no valid latest checkpoint"):
            Checkpoints(tmp_path / "run").restore("latest")
    else:
        for read in (sources.read, load_weights):
            with pytest.raises(UserError):
                read(path)
    assert not place.exists()


def test_zip_bombs_are_refused(tmp_path):
    """A gigabyte of zeros in a megabyte is rejected: torch never compresses, so no compressed file is read."""
    torch.save({"a": torch.zeros(10)}, tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data/0"):
                with new.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                    file.write(data)
            else:
                new.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "w.pth", "a", zipfile.ZIP_DEFLATED) as new:
        new.writestr("archive/data/1", bytes(2**26))
    assert (tmp_path / "w.pth").stat().st_size < 2**20
    with pytest.raises(UserError, match="is compressed, unlike files of torch.save"):
        sources.read(tmp_path / "w.pth")


# --- Checkpoints and runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run with two latest checkpoints and the best one."""
    run = Run(tmp_path_factory.mktemp("runs") / "run")
    run.write_config(complete({}), devices="1 x cpu", command=[])
    for step in (1, 2):
        arrays = {f"params/{key}": array * np.float32(step) for key, array in ARRAYS.items()}
        run.checkpoints.save("latest", step, arrays, {"class_names": ["a", "b"], "step": step})
    run.checkpoints.save("best", 2, arrays, {"class_names": ["a", "b"], "step": 2})
    return run.folder


@given(damage=damages(names=("delete", "empty", "flip", "truncate")), data=st.data())
@tries(60)
def test_damaged_runs(saved, tmp_path, damage, data):
    """With any file deleted, emptied, truncated or with a byte changed: all or nothing, and no file is modified."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    write(path, damage(path.read_bytes()))
    before = contents(folder)
    with refusals():
        restored = Run(folder).checkpoints.restore("latest")
        wanted = {f"params/{key}": array * np.float32(restored.step) for key, array in ARRAYS.items()}
        assert restored.metadata == {"class_names": ["a", "b"], "step": restored.step}
        assert_same(restored.arrays, wanted)
        assert (restored.step == 2) == (not restored.notices)
    with refusals():
        found = load_run_weights(folder)
        assert_same(found.arrays, {key: array * np.float32(2) for key, array in ARRAYS.items()})
        assert (found.arch, found.class_names) == ("resnet18", ("a", "b"))
    with refusals():
        assert Run(folder).config() == complete({})
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/../../../b", ".."])
def test_names_do_not_escape_the_folder(tmp_path, name):
    """Neither names of arrays nor of classes do."""
    folder = tmp_path / "in" / "run"
    checkpoints = Checkpoints(folder)
    checkpoints.save("latest", 1, {name: np.ones(3, np.float32)}, {"class_names": [name]})
    assert_same(checkpoints.restore("latest").arrays, {name: np.ones(3, np.float32)})
    weights = Weights({name: np.ones(3, np.float32)}, name, (name,), {"source": name})
    save_weights(folder / "w.safetensors", weights)
    assert_same(load_weights(folder / "w.safetensors").arrays, weights.arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["run"]
    assert not Path("/tmp/outside").exists()
