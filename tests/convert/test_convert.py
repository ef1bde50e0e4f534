"""Tests of the converters as commands: their output, their errors, and the round trip."""

import email.message
import hashlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import urllib.error
from pathlib import Path

import checkpoints
import jax
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from children import environment

from convert import families, flax_to_resnet, keys, reference, resnet_to_flax, sources
from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.models.weights import load_weights
from sft_jax.run.folder import Run

CLASSES = 7


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return checkpoints.trained(classes=CLASSES)


@pytest.fixture
def one_size(monkeypatch):
    """Compares the networks at one small size only, because each size costs a compilation."""
    monkeypatch.setattr(reference, "SIZES", (32,))


def refusal(file: Path, arch: str = "resnet18") -> str:
    """Returns the error message of converting `file`; asserts that nothing was written."""
    output = file.parent / "out" / "w.safetensors"
    with pytest.raises(UserError) as caught:
        resnet_to_flax.convert(arch, file, "IMAGENET1K_V1", output)
    assert not output.parent.exists()
    return str(caught.value)


def assert_same(actual: dict, wanted: dict) -> None:
    assert actual.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert actual[key].dtype == tensor.dtype
        assert torch.equal(actual[key], tensor), key


@pytest.mark.long
def test_the_command_and_its_certificate(tmp_path, state_dict, pytestconfig):
    torch.save(state_dict, tmp_path / "mine.pth")
    script = pytestconfig.rootpath / "convert" / "resnet_to_flax.py"
    command = [sys.executable, str(script), "--state-dict", "mine.pth", "--output", "new/mine.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer4.1" in done.stdout
    output = tmp_path / "new" / "mine.safetensors"
    assert sorted(file.name for file in output.parent.iterdir()) == [output.name, output.name + ".json"]

    certificate = json.loads((tmp_path / "new" / "mine.safetensors.json").read_text())
    assert [entry["size"] for entry in certificate["sizes"]] == [32, 33, 224]
    for entry in certificate["sizes"]:
        assert list(entry["stages"]) == [
            "stem",
            *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)),
        ]
        assert 0 < entry["logits_relative"] < 1e-5
        assert entry["top1_agreement"] == 1
    assert certificate["output_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert certificate["source_sha256"] == hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    assert certificate["versions"]["torch"] == torch.__version__.partition("+")[0]

    weights = load_weights(output)
    assert (weights.arch, weights.class_names) == ("resnet18", None)
    facts = {key: weights.metadata[key] for key in ("num_classes", "source", "source_sha256")}
    assert facts == {"num_classes": "7", "source": "mine.pth", "source_sha256": certificate["source_sha256"]}
    np.testing.assert_array_equal(weights.arrays["fc.kernel"], state_dict["fc.weight"].numpy().T, strict=True)
    network = families.flax_network("resnet18", CLASSES)
    assert weights.arrays.keys() == (network.params | network.batch_stats).keys()


@pytest.mark.usefixtures("one_size")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_round_trip_is_bit_identical(tmp_path, state_dict, suffix, counted):
    if not counted:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith("tracked")}
    source, middle, back = tmp_path / f"a{suffix}", tmp_path / "b.safetensors", tmp_path / f"c{suffix}"
    if suffix == ".pth":
        torch.save(state_dict, source)
    else:
        safetensors.torch.save_file(state_dict, source)
    resnet_to_flax.convert("resnet18", source, "", middle)
    flax_to_resnet.convert(None, middle, back)
    converted = torch.load(back) if suffix == ".pth" else safetensors.torch.load_file(back)
    assert_same(converted, state_dict)
    torchvision.models.resnet18(num_classes=CLASSES).load_state_dict(converted, strict=True)


@pytest.mark.parametrize("suffix", flax_to_resnet.SUFFIXES)
def test_a_full_disk_keeps_the_old_file(tmp_path, state_dict, suffix):
    """A limit on file sizes makes the write fail half-way, as on a full disk."""
    output = tmp_path / f"out{suffix}"
    output.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=rf"^{output} cannot be written: \[Errno 27\] File too large$"):
            flax_to_resnet._save(state_dict, {}, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {output.name: b"before"}


@pytest.mark.long
@pytest.mark.parametrize("stem", ["imagenet", pytest.param("cifar", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_size")
def test_a_run_becomes_a_state_dict(tmp_path, state_dict, stem, capsys):
    network = families.flax_network("resnet18", CLASSES)
    arrays = keys.to_flax(state_dict, network)
    run = Run(tmp_path / "run")
    run.write_config(complete({"model.stem": stem}))
    parts = {"params": network.params, "batch_stats": network.batch_stats}
    saved = {f"{part}/{key}": jax.numpy.asarray(arrays[key]) for part, shapes in parts.items() for key in shapes}
    names = [f"class {index}" for index in range(CLASSES)]
    run.checkpoints.save("best", 5, saved, {"class_names": names, "progress": {}})
    flax_to_resnet.convert(run.folder, None, tmp_path / "out.pth")
    converted = torch.load(tmp_path / "out.pth")
    torchvision.models.resnet18(num_classes=CLASSES).load_state_dict(converted, strict=True)
    assert_same(
        converted, {key: torch.zeros_like(t) if key.endswith("tracked") else t for key, t in state_dict.items()}
    )
    said = capsys.readouterr().out
    assert "resnet18(num_classes=7)" in said
    assert "class 0, class 1" in said
    assert ("model.conv1.stride" in said) == (stem == "cifar")


def _reference(arch):
    with torch.device("meta"):
        if ARCHITECTURES[arch].reference == "torchvision":
            return torchvision.models.get_model(arch, weights=None, num_classes=CLASSES)
        pool = {"global_pool": "avg"} if arch.endswith("_avg") else {}
        return timm.create_model(arch.removesuffix("_avg"), num_classes=CLASSES, **pool)


@pytest.mark.long
@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(name, marks=[pytest.mark.slow] if known.family != "resnet" else [])
        for name, known in ARCHITECTURES.items()
        if name != "tiny"
    ],
)
def test_every_network_has_the_keys_and_shapes_of_its_reference(arch):
    module = _reference(arch)
    shapes = {key: list(t.shape) for key, t in module.state_dict().items() if not key.endswith("tracked")}
    network = families.flax_network(arch, CLASSES)
    ours = {
        keys.torch_key(key, network.architecture): [
            leaf.shape[axis] for axis in np.argsort(keys.axes_of(key, len(leaf.shape), network.architecture))
        ]
        for key, leaf in (network.params | network.batch_stats).items()
    }
    assert ours == shapes


def test_all_problems_are_listed_at_once(tmp_path, state_dict):
    broken = dict(state_dict)
    del broken["layer1.0.bn1.running_var"]
    broken["conv1.weight"] = broken["conv1.weight"].permute(2, 3, 1, 0).contiguous()
    broken["bn1.weight"] = broken["bn1.weight"].long()
    broken["bn1.bias"] = broken["bn1.bias"].clone().index_fill_(0, torch.tensor([3]), float("nan"))
    broken["bn1.num_batches_tracked"] = torch.tensor([1, 2])
    torch.save(broken, tmp_path / "w.pth")
    lines = [
        f"{tmp_path / 'w.pth'} does not fit resnet18, nothing was written:",
        "  layer1.0.bn1.running_var is missing",
        "  bn1.num_batches_tracked is int64[2], not int64[]",
        "  bn1.weight is int64[64], not float32[64]",
        "  conv1.weight is float32[7, 7, 3, 64], not float32[64, 3, 7, 7]",
        "  bn1.bias has values that are not finite",
    ]
    assert refusal(tmp_path / "w.pth").splitlines() == lines
    torch.save(broken | {"extra.weight": torch.zeros(2)}, tmp_path / "w.pth")
    lines[2:] = ["  extra.weight is unknown", *lines[2:5], "  and 1 more"]
    assert refusal(tmp_path / "w.pth").splitlines() == lines


def test_another_network_is_recognised(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth", "resnet50").endswith(
        "does not fit resnet50, but fits resnet18: add --arch resnet18"
    )


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Hostile()}, "zip.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Hostile()))
    assert "it contains posix.mkdir, and code in a pickle is never run here" in refusal(Path("zip.pth"))
    refusal(Path("plain.pth"))
    assert sorted(os.listdir()) == ["plain.pth", "zip.pth"]


def test_files_without_a_state_dict_are_refused_with_one_line(tmp_path, state_dict):
    whole = io.BytesIO()
    torch.save(state_dict, whole)
    tensors = safetensors.torch.save(state_dict)
    contents = {
        "cut.pth": whole.getvalue()[:1000],
        "text.pth": b"hello, world",
        "empty.pth": b"",
        "cut.safetensors": tensors[:-1],
        "text.safetensors": b"hello, world",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        message = refusal(tmp_path / name)
        assert "is damaged or " in message
        assert "\n" not in message
    torch.save([1, 2], tmp_path / "list.pth")
    assert "contains no state_dict" in refusal(tmp_path / "list.pth")


@pytest.mark.usefixtures("one_size")
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_networks_that_differ_are_not_written(tmp_path, state_dict, monkeypatch, factor):
    def distorted(*args):
        return {key: np.float32(factor) * array for key, array in to_flax(*args).items()}

    to_flax = keys.to_flax
    monkeypatch.setattr(keys, "to_flax", distorted)
    torch.save(state_dict, tmp_path / "w.pth")
    assert "the two networks differ: at 32 px a logit is off by" in refusal(tmp_path / "w.pth")


class TestWeightsOfTorchvision:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def served(self, monkeypatch, answer):
        def urlopen(*_):
            if isinstance(answer, Exception):
                raise answer
            response = io.BytesIO(answer)
            response.info = email.message.Message  # type: ignore[attr-defined]
            return response

        monkeypatch.setattr("torch.hub.urlopen", urlopen)

    def test_being_offline_is_an_error_with_a_remedy(self, monkeypatch):
        self.served(monkeypatch, urllib.error.URLError("Name or service not known"))
        with pytest.raises(UserError) as caught:
            sources.torchvision_file("resnet18", "IMAGENET1K_V1")
        assert str(caught.value) == (
            "https://download.pytorch.org/models/resnet18-f37072fd.pth cannot be downloaded (Name or service not "
            "known); download it elsewhere, copy it here and use --state-dict resnet18-f37072fd.pth"
        )

    def test_a_download_with_another_hash_is_refused(self, tmp_path, monkeypatch):
        self.served(monkeypatch, b"not what torchvision published")
        with pytest.raises(UserError, match="the download of .*resnet18-f37072fd.pth is damaged .*invalid hash value"):
            sources.torchvision_file("resnet18", "IMAGENET1K_V1")
        assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []

    def test_a_cached_file_with_another_hash_is_refused(self, tmp_path):
        cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        cached.parent.mkdir(parents=True)
        cached.write_bytes(b"not what torchvision published")
        with pytest.raises(
            UserError, match=f"{cached} is damaged: its SHA-256 does not begin with f37072fd; delete it"
        ):
            sources.torchvision_file("resnet18", "IMAGENET1K_V1")

    def test_unknown_weights_name_the_known_ones(self):
        with pytest.raises(UserError, match="no weights 'V7' for resnet18, only IMAGENET1K_V1, DEFAULT"):
            sources.torchvision_file("resnet18", "V7")

    @pytest.mark.usefixtures("one_size")
    def test_they_have_their_class_names(self, tmp_path, monkeypatch):
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
        monkeypatch.setattr(sources, "torchvision_file", lambda arch, name: tmp_path / "w.pth")
        resnet_to_flax.convert("resnet18", None, "IMAGENET1K_V1", tmp_path / "w.safetensors")
        weights = load_weights(tmp_path / "w.safetensors")
        assert weights.class_names is not None
        assert (len(weights.class_names), weights.class_names[0]) == (1000, "tench")
        assert weights.metadata["source"] == "torchvision's IMAGENET1K_V1 of resnet18"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "w.pth"], "--output w.pth must end in .safetensors"),
        (["--state-dict", "none.pth", "--output", "w.safetensors"], "no such file: none.pth"),
        (
            ["--arch", "resnet19", "--output", "w.safetensors"],
            "unknown network 'resnet19'; did you mean --arch res",
        ),
    ],
)
def test_wrong_usage_is_refused(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["resnet_to_flax.py", *arguments])
    with pytest.raises(UserError, match=message):
        resnet_to_flax.main()


@pytest.mark.skipif("SFT_JAX_TEST_DATA" not in os.environ, reason="SFT_JAX_TEST_DATA names no folder with weights/")
def test_real_weights_survive_a_round_trip(tmp_path):
    source = Path(os.environ["SFT_JAX_TEST_DATA"]) / "weights" / "resnet18-imagenet-stage123.pth"
    resnet_to_flax.convert("resnet18", source, "", tmp_path / "w.safetensors")
    flax_to_resnet.convert(None, tmp_path / "w.safetensors", tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth"), torch.load(source, weights_only=True))
