"""Tests that checkpoints of other libraries give the right weights or a clear error message."""

import argparse
import pathlib
import pickle

import checkpoints
import numpy as np
import pytest
import torch
import torchvision
from checkpoints import CLASSES, SAME, body, floats, with_prefix

from convert import families, keys, parity, reference, resnet_to_flax, safe_load, sources
from convert.fit import Fit, fit
from sft_jax.errors import UserError
from sft_jax.models.weights import load_weights


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.trained()


@pytest.fixture(scope="module")
def arrays(state_dict):
    return keys.to_flax(state_dict, families.flax_network("resnet18", CLASSES))


def fitted(content, folder, key=None, arch="resnet18") -> tuple[Fit, list[str]]:
    """Converts a checkpoint, up to the comparison of logits; returns the result and the notices."""
    path = folder / "w.pth"
    if content is not None:
        torch.save(content, path)
    checkpoint = sources.read(path, key)
    result = fit(checkpoint.state_dict, arch, "w.pth")
    return result, checkpoint.notices + result.notices


def refusal(content, folder, **settings) -> str:
    with pytest.raises(UserError) as caught:
        fitted(content, folder, **settings)
    return str(caught.value)


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(actual[key], array, err_msg=key, strict=True)


def assert_notices(notices, words):
    assert len(notices) == len(words), notices
    for notice, part in zip(notices, words, strict=True):
        assert part in notice


@pytest.mark.parametrize("case", SAME)
def test_all_forms_give_the_same_weights(tmp_path, state_dict, arrays, case):
    make, words = SAME[case]
    result, notices = fitted(make(state_dict), tmp_path)
    assert_same(result.weights(), arrays)
    assert_notices(notices, words)
    if "half" not in case:
        assert result.counters == keys.counters_of(state_dict)


@pytest.mark.parametrize("zipped", [True, False])
def test_bookkeeping_of_training_scripts_is_ignored(tmp_path, state_dict, arrays, zipped):
    content = {"state_dict": state_dict} | checkpoints.LEFTOVERS
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_same(fitted(None, tmp_path)[0].weights(), arrays)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_cast_with_a_notice(tmp_path, state_dict, kind):
    cast = floats(state_dict, lambda tensor: tensor.to(kind))
    result, notices = fitted(cast, tmp_path)
    wanted = keys.to_flax(floats(cast, torch.Tensor.float), result.network)
    assert_same(result.weights(), wanted)
    assert_notices(notices, [f"102 tensors were cast from {str(kind).removeprefix('torch.')} to float32"])


@pytest.mark.parametrize("name", [None, "hf"])
def test_safetensors_in_half_precision_and_of_hugging_face(tmp_path, state_dict, arrays, name):
    tensors = checkpoints.hugging_face(state_dict) if name else floats(state_dict, torch.Tensor.half)
    checkpoints.save_safetensors(tensors, tmp_path / "w.safetensors")
    checkpoint = sources.read(tmp_path / "w.safetensors")
    result = fit(checkpoint.state_dict, "resnet18", "w")
    if name:
        assert_same(result.weights(), arrays)
    else:
        assert_notices(result.notices, ["102 tensors were cast from float16"])


class TestKeys:
    @pytest.fixture
    def several(self, state_dict):
        twice = floats(state_dict, lambda tensor: 2 * tensor)
        return {"net": state_dict, "best": twice, "opt": {}, "ema": {"shadow": with_prefix("module.", twice)}}

    @pytest.mark.parametrize("key", ["best", "ema", "ema.shadow", "ema.shadow.module"])
    def test_a_key_chooses_one_of_several(self, tmp_path, several, arrays, key):
        result, _ = fitted(several, tmp_path, key=key)
        np.testing.assert_array_equal(result.arrays["fc.bias"], 2 * arrays["fc.bias"])

    def test_several_without_an_obvious_one_are_refused_with_the_flags_to_use(self, tmp_path, several):
        message = refusal(several, tmp_path)
        assert message.endswith("contains 3 networks; choose one with --key net or --key best or --key ema.shadow")

    def test_an_unknown_key_names_the_known_ones(self, tmp_path, several):
        message = refusal(several, tmp_path, key="bset")
        assert message.endswith("has no weights under 'bset'; use --key net or --key best or --key ema.shadow")

    def test_a_key_chooses_one_of_two_modules(self, tmp_path, state_dict, arrays):
        content = {**with_prefix("left.", state_dict), **with_prefix("right.", floats(state_dict, torch.zeros_like))}
        assert refusal(content, tmp_path).endswith("contains 2 networks; choose one with --key left or --key right")
        assert_same(fitted(content, tmp_path, key="left")[0].weights(), arrays)

    def test_the_files_own_weights_need_no_key(self, tmp_path, state_dict, arrays):
        result, notices = fitted(state_dict | {"other": floats(state_dict, torch.zeros_like)}, tmp_path)
        assert_same(result.weights(), arrays)
        assert_notices(notices, ["other weights are available with --key other"])


class TestHeads:
    def without(self, result, arrays):
        assert result.classes == 0
        assert_same(result.weights(), {key: array for key, array in arrays.items() if not key.startswith("fc.")})

    def test_a_file_may_have_no_head(self, tmp_path, state_dict, arrays):
        result, notices = fitted(body(state_dict), tmp_path)
        self.without(result, arrays)
        assert_notices(notices, ["no head: the converted file has none"])

    @pytest.mark.parametrize(
        "head",
        [
            {"fc.0.weight": torch.ones(9, 512), "fc.0.bias": torch.ones(9), "fc.2.weight": torch.ones(5, 9)},
            {"fc.0.weight": torch.ones(512), "fc.1.weight": torch.ones(5, 512)},  # a norm before the layer
            {"fc.weight": torch.ones(5, 1024), "fc.bias": torch.ones(5)},  # average and max pooling concatenated
            {"fc.weight_g": torch.ones(5, 1), "fc.weight_v": torch.ones(5, 512), "fc.bias": torch.ones(5)},
            {"fc.weight": torch.ones(1, 512).expand(2**40, 512)},
            {"fc.weight": torch.ones(0, 512)},
        ],
        ids=["MLP", "norm", "wider", "weight norm", "immense", "empty"],
    )
    def test_other_heads_than_linear_layers_are_dropped_with_a_notice(self, tmp_path, state_dict, arrays, head):
        result, notices = fitted(body(state_dict) | head, tmp_path)
        self.without(result, arrays)
        assert_notices(notices, [f"its head ({', '.join(list(head)[:3])}"])
        assert "is not one linear layer and was dropped" in notices[0]

    def test_projections_of_self_supervised_networks_are_dropped(self, tmp_path, state_dict, arrays):
        content = with_prefix("module.encoder.", body(state_dict)) | {"module.predictor.0.weight": torch.ones(3, 3)}
        content |= {"module.encoder.projection_head.0.weight": torch.ones(9, 512)}
        result, notices = fitted({"state_dict": content}, tmp_path)
        self.without(result, arrays)
        left_out = "dropped, not part of the network: module.predictor.0.weight, projection_head.0.weight"
        assert_notices(notices, ["'state_dict'", "'module.encoder.' from its keys", "no head", left_out])

    def test_a_missing_bias_becomes_zeros(self, tmp_path, state_dict, arrays):
        result, notices = fitted({key: t for key, t in state_dict.items() if key != "fc.bias"}, tmp_path)
        assert_same(result.weights(), arrays | {"fc.bias": np.zeros(CLASSES, np.float32)})
        assert_notices(notices, ["its head has no bias: added one of zeros"])

    def test_one_output_is_refused_with_a_remedy(self, tmp_path, state_dict):
        one = state_dict | {"fc.weight": torch.ones(1, 512), "fc.bias": torch.ones(1)}
        message = refusal(one, tmp_path)
        assert "\n" not in message
        assert "has one output instead of one per class" in message
        # The suggested fix works: the sigmoid is the second class's probability.
        two = {key: torch.cat([0 * t, t]) if key.startswith("fc.") else t for key, t in one.items()}
        assert fitted(two, tmp_path)[0].classes == 2


class TestStems:
    def logits(self, result, images):
        return parity.flax_activations(result.network, result.arrays, (images,))[1]

    def test_a_3x3_kernel_is_a_cifar_stem(self, tmp_path, state_dict):
        kernel = torch.randn(64, 3, 3, 3, generator=torch.manual_seed(1))
        result, notices = fitted(state_dict | {"conv1.weight": kernel}, tmp_path)
        assert result.stem == "cifar3x3"
        assert_notices(notices, ["assuming model.stem=cifar3x3"])
        module = torchvision.models.resnet18(num_classes=CLASSES)
        module.conv1, module.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
        module.load_state_dict(state_dict | {"conv1.weight": kernel})
        images = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
        _, theirs = parity.torch_activations(module.eval(), (images,), families.REFERENCES["resnet"])
        np.testing.assert_allclose(self.logits(result, images), theirs, atol=1e-4 * np.abs(theirs).max())

    def test_a_gray_kernel_gives_the_same_logits_of_gray_images_in_rgb(self, tmp_path, state_dict):
        kernel = state_dict["conv1.weight"].sum(1, keepdim=True)
        result, notices = fitted(state_dict | {"conv1.weight": kernel.half()}, tmp_path)
        assert result.stem == "imagenet"
        assert_notices(notices, ["it takes gray images: its first kernel was divided by 3"])
        module = torchvision.models.resnet18(num_classes=CLASSES)
        module.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        module.load_state_dict(state_dict | {"conv1.weight": kernel.half().float()})
        gray = np.random.default_rng(0).standard_normal((2, 32, 32, 1), np.float32)
        _, theirs = parity.torch_activations(module.eval(), (gray,), families.REFERENCES["resnet"])
        ours = self.logits(result, np.repeat(gray, 3, -1))
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())

    @pytest.mark.parametrize("shape", [(64, 4, 7, 7), (64, 3, 5, 5), (32, 1, 7, 7), (64, 1, 5, 5), ()])
    def test_other_kernels_are_refused(self, tmp_path, state_dict, shape):
        message = refusal(state_dict | {"conv1.weight": torch.zeros(shape)}, tmp_path)
        assert f"conv1.weight is float32{list(shape)}, not float32[64, 3, 7, 7]" in message


class TestMismatches:
    def test_the_message_has_a_few_lines_and_a_count(self, tmp_path, state_dict):
        other = {key.replace("bn1", "norm1"): tensor for key, tensor in state_dict.items()}
        message = refusal(other, tmp_path)
        assert len(message.splitlines()) == 7
        assert "  bn1.weight is missing (similar: norm1.weight)" in message.splitlines()
        assert message.endswith(f"and {2 * 9 * 4 + 9 - 5} more")

    @pytest.mark.parametrize("arch", ["resnet34", "wide_resnet50_2"])
    def test_the_network_that_fits_is_named(self, tmp_path, arch):
        # Expanded tensors, which keep the file at a few kilobytes.
        with torch.device("meta"):
            shapes = torchvision.models.get_model(arch, weights=None).state_dict()
        tensors = {key: torch.ones((), dtype=t.dtype).expand(t.shape) for key, t in shapes.items()}
        content = {"state_dict": with_prefix("module.", floats(body(tensors), torch.Tensor.half))}
        assert refusal(content, tmp_path) == f"w.pth does not fit resnet18, but fits {arch}: add --arch {arch}"

    def test_another_family_is_refused(self, tmp_path):
        with torch.device("meta"):
            shapes = torchvision.models.mobilenet_v2(weights=None).state_dict()
        tensors = {key: torch.ones((), dtype=t.dtype).expand(t.shape) for key, t in shapes.items()}
        assert refusal(tensors, tmp_path) == (
            "w.pth is not a ResNet of torchvision's family: it has no layer1.0.conv1.weight, only "
            "features.0.0.weight, features.0.1.weight, features.0.1.bias and 311 more"
        )

    def test_tensors_without_values_are_refused(self, tmp_path, state_dict):
        assert "conv1.weight is meta [64, 3, 7, 7]" in refusal(floats(state_dict, lambda t: t.to("meta")), tmp_path)

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    def test_torchscript_is_recognised(self, tmp_path):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pth")
        message = refusal(None, tmp_path)
        assert "is TorchScript, a program, not a state_dict; if you trust it, convert it with torch.save(" in message
        assert "\n" not in message

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
    def test_a_git_lfs_pointer_is_recognised(self, tmp_path, suffix):
        path = tmp_path / f"w{suffix}"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n")
        with pytest.raises(UserError, match="is only a Git LFS pointer; fetch the file with git lfs pull"):
            sources.read(path)

    def test_a_whole_model_is_refused(self, tmp_path):
        message = refusal(torch.nn.Linear(2, 2), tmp_path)
        assert "it contains torch.nn.modules.linear.Linear, and code in a pickle is never run here" in message


class TestPlaceholders:
    """Placeholders stay inert, whatever a pickle asks of them."""

    def test_no_attribute_is_kept(self):
        ignored = safe_load.Ignored("anything", 1)
        ignored.__setstate__({"__class__": dict})
        assert type(ignored) is safe_load.Ignored
        with pytest.raises(AttributeError):
            ignored.value = 1

    def test_namespaces_and_paths_are_not_created(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise AssertionError("code was run")

        content = {"state_dict": {"layer1.0.conv1.weight": torch.ones(2)}, "a": argparse.Namespace(p=pathlib.Path("x"))}
        torch.save(content, tmp_path / "w.pth")
        monkeypatch.setattr(argparse.Namespace, "__init__", fail)
        monkeypatch.setattr(argparse.Namespace, "__setstate__", fail, raising=False)
        assert isinstance(safe_load.load(tmp_path / "w.pth")["a"], safe_load.Ignored)

    def test_a_placeholder_calls_nothing(self, tmp_path):
        """builtins.list becomes a placeholder too, so that a pickle cannot reach any function."""

        class Calls:
            def __reduce__(self):
                return list, ((1, 2),)

        torch.save({"a": Calls()}, tmp_path / "w.pth")
        assert isinstance(safe_load.load(tmp_path / "w.pth")["a"], safe_load.Ignored)
        for name in ("getattr", "eval", "exec", "__import__", "open"):
            code = b"\x80\x02cbuiltins\n" + name.encode() + b"\n(X\x01\x00\x00\x00xtR."
            (tmp_path / "w.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + code)
            with pytest.raises(UserError, match="code in a pickle is never run here"):
                safe_load.load(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["no head", "gray"])
def test_the_command_converts_other_heads_and_stems(tmp_path, state_dict, name, monkeypatch, capsys):
    """The certificate compares the same function; a file without a head can be fine-tuned but cannot predict."""
    import sft_jax

    monkeypatch.setattr(reference, "SIZES", (32,))
    content = {"gray": {**state_dict, "conv1.weight": state_dict["conv1.weight"][:, :1]}, "no head": body(state_dict)}
    torch.save(content[name], tmp_path / "w.pth")
    resnet_to_flax.convert("resnet18", tmp_path / "w.pth", "", tmp_path / "w.safetensors")
    said = capsys.readouterr().out
    weights = load_weights(tmp_path / "w.safetensors")
    assert float(weights.metadata["logit_difference"]) < 1e-5
    if name == "gray":
        assert weights.arrays["conv1.kernel"].shape == (7, 7, 3, 64)
        return
    assert "resnet18, no head, 11,176,512 parameters" in said
    assert weights.metadata["num_classes"] == "0"
    with pytest.raises(UserError, match="have no head and therefore no classes; fine-tune them first, with --config.i"):
        sft_jax.load(tmp_path / "w.safetensors")
