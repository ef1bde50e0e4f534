"""Compares Grad-CAM with pytorch-grad-cam, and attention rollout with attention weights of timm's networks."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from image_folders import fill
from made_run import make_run
from PIL import Image
from reference_checks import REFERENCES, images, keys, moved, network, with_classes
from tiny_vit import SIZE, architecture, build

import sft_jax
from sft_jax import predict
from sft_jax.data.preprocess import Preprocess
from sft_jax.errors import UserError, run_command
from sft_jax.inference import explain
from sft_jax.models import ARCHITECTURES


def bound(module, ours):
    """Returns our NNX network with the weights of torch's."""
    own, _ = REFERENCES[ours.architecture.family].adapted(module.state_dict(), ours.architecture.name)
    arrays = keys.to_flax(own, ours)
    params, batch_stats = ({key: jnp.asarray(arrays[key]) for key in part} for part in (ours.params, ours.batch_stats))
    return ours.bind(params, batch_stats)


# Of each network, the torch module whose output is the last of our feature maps.
LAST = {
    "resnet18": lambda module: module.layer4[-1],
    "efficientnet_b0": lambda module: module.features[7],
    "mobilenet_v3_small": lambda module: module.features[12],
    "convnext_tiny": lambda module: module.features[7],
}


@pytest.mark.long
@pytest.mark.parametrize("name", LAST)
def test_grad_cam_matches_pytorch_grad_cam(name):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module = moved(with_classes(name))
    pictures, outputs = images(64), np.array([1, 3])
    with grad_cam.GradCAM(module, [LAST[name](module)]) as reference:
        tensors = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        activations = reference.activations_and_grads(tensors)
        reference.model.zero_grad()
        sum(ClassifierOutputTarget(int(number))(logits) for number, logits in zip(outputs, activations)).backward()  # noqa: B905
        maps = [part.numpy() for part in reference.activations_and_grads.activations]
        slopes = [part.numpy() for part in reference.activations_and_grads.gradients]
        wanted = reference.get_cam_image(tensors, None, None, maps[0], slopes[0])
    wanted = np.maximum(wanted, 0)
    wanted = wanted - wanted.min((1, 2), keepdims=True)
    wanted /= np.maximum(wanted.max((1, 2), keepdims=True), 1e-12)
    model = bound(module, network(ARCHITECTURES[name]))
    assert explain.method(model) == "Grad-CAM"
    ours = np.asarray(explain.heat_maps(model, jnp.asarray(pictures), jnp.asarray(outputs)))
    assert ours.max() == 1
    np.testing.assert_allclose(ours, wanted, atol=2e-3)
    others = np.asarray(explain.heat_maps(model, jnp.asarray(pictures), jnp.asarray(outputs[::-1].copy())))
    assert np.abs(others - ours).max() > 0.01, "another class has another map"


@pytest.mark.parametrize("name", ["plain", "plain_avg", "registers"])
def test_rollout_matches_the_attention_of_timm(name):
    module = moved(build(name))
    seen = []
    for block in module.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda layer, inputs, output: seen.append(output.detach().numpy()))
    pictures = images(SIZE)
    with torch.no_grad():
        module(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    prefix = module.num_prefix_tokens
    flow = np.eye(seen[0].shape[-1])[None]
    for weights in seen:
        flow = (0.5 * weights.mean(1) + 0.5 * np.eye(weights.shape[-1])) @ flow
    wanted = flow[:, prefix:].mean(1) if name == "plain_avg" else flow[:, 0]
    wanted = wanted[:, prefix:].reshape(-1, 4, 4)
    wanted = wanted - wanted.min((1, 2), keepdims=True)
    wanted /= wanted.max((1, 2), keepdims=True)
    model = bound(module, network(architecture(name), size=SIZE))
    assert explain.method(model) == "attention rollout"
    ours = explain.heat_maps(model, jnp.asarray(pictures), jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


def test_a_flat_map_is_zero_everywhere():
    """A ReLU can leave nothing: a map without any evidence for the class is not stretched to its noise."""

    class Model:
        def attention(self, inputs):
            yield jnp.full((1, 1, 5, 5), 0.2)

        class variant:
            patch, prefix, pool = 2, 1, "token"

    heat = explain._rollout(Model(), jnp.zeros((1, 4, 4, 3)))
    assert heat.shape == (1, 2, 2)
    assert np.ptp(np.asarray(heat)) == 0


def test_an_overlay_is_red_where_the_heat_is_and_blue_elsewhere():
    image = np.full((32, 48, 3), 100, np.uint8)
    drawn = np.asarray(explain.overlay(image, np.array([[0.0, 0.9], [0.0, 0.0]], np.float32))).astype(int)
    assert drawn.shape == image.shape
    assert drawn[0, -1, 0] > drawn[0, -1, 2] + 80
    assert drawn[-1, 0, 2] > drawn[-1, 0, 0] + 30


@pytest.mark.long
def test_predict_writes_a_heat_map_for_each_image(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", data__source="folder:flowers")
    fill(tmp_path / "new", ("bee", "fly"), 2)
    flags = ["--workdir", run.folder, tmp_path / "new", "--json", "--explain", tmp_path / "why" / "these"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, flags)])
    assert run_command(predict.main) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["explanation"] for answer in answers] == [
        str(tmp_path / "why" / "these" / f"{number:05}_{name}.png")
        for number, name in enumerate(("000", "001", "000", "001"), 1)
    ]
    classifier = sft_jax.load(run.folder)
    square = classifier.preprocess.read(tmp_path / "new" / "bee" / "000.png")
    heat = classifier.explain([square], classifier.square_logits([square]).argmax(-1))
    wanted = np.asarray(explain.overlay(square, heat[0]))
    np.testing.assert_array_equal(np.asarray(Image.open(answers[0]["explanation"])), wanted)


def test_what_cannot_be_explained_or_written_is_refused(tmp_path):
    exported = sft_jax.inference.predictor.Classifier(None, Preprocess(8, mean=(0.5,) * 3, std=(0.5,) * 3), ("a", "b"))
    with pytest.raises(UserError, match="an export cannot be explained; name the run or the converted file"):
        exported.explain([], np.zeros(0))
    with pytest.raises(UserError, match="object cannot be explained: it has neither `attention` nor `pool`"):
        explain.method(object())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/why cannot be made: Not a directory"):
        explain.write_overlays(tmp_path / "file" / "why", [], np.zeros((0, 1, 1)), exported.preprocess, 0)
