"""Tests of class weights in the training loss, against torch and scikit-learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import TINY, one_device, run

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.errors import UserError
from sft_jax.models import Network, initial_arrays
from sft_jax.models.architecture import Builder
from sft_jax.models.resnet import BasicBlock, Variant, architecture
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.tasks.class_weights import class_weights
from sft_jax.tasks.classification import Classification
from sft_jax.tasks.losses import cross_entropy, weight_scale
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings, make_train_step

NAMES = ("ant", "bee", "dög")
LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0], np.int32)
LOGITS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
WEIGHTS = (0.5, 3.0, 1.25)


def torch_loss(labels, smoothing):
    """Returns torch's mean over the batch, which is divided by the weights of its labels."""
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS), label_smoothing=smoothing)
    return float(loss(torch.from_numpy(LOGITS), torch.from_numpy(np.array(labels)).long()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_matches_torch(smoothing):
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    each = cross_entropy(jnp.asarray(LOGITS), LABELS, smoothing, weights)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS),
        torch.from_numpy(LABELS).long(),
        weight=torch.tensor(WEIGHTS),
        label_smoothing=smoothing,
        reduction="none",
    )
    np.testing.assert_allclose(each, theirs, rtol=1e-5)
    assert float(weight_scale(weights, LABELS) * each.mean()) == pytest.approx(torch_loss(LABELS, smoothing), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_of_a_mixture_is_the_sum_for_both_labels(smoothing):
    """As the authors of mixup compute it: a weighted sum of the criteria of both targets."""
    partners = LABELS[::-1].copy()
    task = Classification(NAMES, smoothing, WEIGHTS)
    own, other = (task.loss(jnp.asarray(LOGITS), {"label": jnp.asarray(labels)}) for labels in (LABELS, partners))
    mixed = task.loss_scale({"label": jnp.asarray(LABELS)}, None) * (0.3 * own + 0.7 * other).mean()
    wanted = 0.3 * torch_loss(LABELS, smoothing) + 0.7 * torch_loss(partners, smoothing)
    assert float(mixed) == pytest.approx(wanted, rel=1e-5)


def build(**settings):
    return Builder(architecture("small", Variant(BasicBlock, (1, 0, 0, 0))), 3, settings)


@pytest.mark.long
@pytest.mark.parametrize(("count", "parts"), [(1, 1), (1, 4), (4, 1), (4, 2)])
def test_a_step_divides_by_the_weights_of_the_whole_batch(count, parts):
    """The sum is over all devices and micro-batches, whose labels differ."""
    labels = np.array([0, 0, 0, 0, 1, 2, 1, 0], np.int32)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    optimizer, devices = optax.sgd(1.0), Devices(jax.devices()[:count])
    network = Network.abstract(build(axis_name=AXIS))
    params, batch_stats = initial_arrays(build(), 0)
    settings = StepSettings(batch_statistics=False, accumulate=parts)
    program = make_train_step(network, Classification(NAMES, class_weights=WEIGHTS), optimizer, AXIS, settings)
    state = devices.replicate(TrainState.create(params, batch_stats, optimizer))
    batch = {"image": images, "label": labels}
    own = {name: devices.shard(column[None])[:, 0] for name, column in batch.items()}
    state, metrics = devices.compile(program, sharded=(False, True))(state, own)

    plain = Network.abstract(build())

    def wanted(params):
        logits, _ = plain.apply(params, batch_stats, images, train=False)
        own = jnp.asarray(WEIGHTS, jnp.float32)[labels]
        return (own * cross_entropy(logits, labels)).sum() / own.sum()

    loss, slopes = jax.jit(jax.value_and_grad(wanted))(params)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-5)
    for name, slope in slopes.items():
        moved = np.asarray(params[name]) - np.asarray(state.params[name])
        np.testing.assert_allclose(moved, slope, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(slope).max(), err_msg=name)


def test_a_batch_of_weight_zero_has_no_effect():
    weights = jnp.asarray([0.0, 1.0, 1.0])
    assert float(weight_scale(weights, np.zeros(4, np.int32))) == 0


def test_balanced_weights_match_scikit_learn():
    labels = np.random.default_rng(0).choice(3, 200, p=(0.7, 0.25, 0.05)).astype(np.int32)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights("balanced", labels, NAMES), wanted)
    two = labels * (labels < 2)
    without = class_weights("balanced", two, NAMES)
    np.testing.assert_allclose(without[:2], compute_class_weight("balanced", classes=np.arange(2), y=two))
    assert without[2] == 1.0, "no images: it only matters for smoothed labels"
    assert class_weights("none", labels, NAMES) is None


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"dög": 1.25, "ant": 0.5, "bee": 3}),
        "dög,1.25\nant,0.5\nbee,3\n",
        "class,weight\r\nant, 0.5\r\nbee,3\r\n\r\ndög,1.25\r\n",
        "\ufeffname,weight\nant,0.5\nbee,3\ndög,1.25",
    ],
    ids=["json", "no header", "windows", "excel"],
)
def test_weights_are_read_from_a_file(tmp_path, text):
    file = tmp_path / "weights.txt"
    file.write_bytes(text.encode())
    assert class_weights(str(file), LABELS, NAMES) == WEIGHTS


def test_the_file_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.csv").write_text("ant,1\nbee,1\ndög,2")
    assert class_weights("~/weights.csv", LABELS, NAMES) == (1, 1, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ant,1\nbee,2\ncat,3", "no class is called cat; dög is missing; give exactly one weight per class"),
        ("ant,1\nbee,-2\ndög,3", "the weight of bee is -2; it must be 0 or more"),
        ("ant,1\nbee,nan\ndög,3", "the weight of bee is nan; it must be 0 or more"),
        ("ant,0\nbee,0\ndög,0", "all classes with images have weight 0"),
        ("ant,1\nbee,much\ndög,3", "is neither a JSON object"),
        ("ant,1\nant,2\ndög,3", "it lists a class twice"),
        ("ant;1\nbee;2", "line 1 has 1 fields"),
        ("", "it is empty"),
        ('{"ant": [1]}', "is neither a JSON object"),
        ('{"ant": 1,', "is neither a JSON object"),
        ('{"ant": 1, "ant": 2}', "it lists a class twice"),
    ],
)
def test_unusable_weights_are_a_one_line_error(tmp_path, text, said):
    file = tmp_path / "weights.txt"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        class_weights(str(file), LABELS, NAMES)
    assert str(caught.value).startswith(f"regularization.class_weights={file}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="=balance must be none, balanced or a readable file: No such"):
        class_weights("balance", LABELS, NAMES)
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="or a readable file: not a text file"):
        class_weights(str(tmp_path / "image"), LABELS, NAMES)


def test_a_run_uses_the_weights():
    images = ArraySplit.of_images(np.zeros((8, 16, 16, 3), np.uint8), LABELS)
    values = TINY | {"regularization.class_weights": "balanced", "batch_size": 4}
    experiment = Experiment(complete(values), Dataset(images, images, images, NAMES), one_device())
    assert experiment.task.class_weights == pytest.approx((8 / 9, 8 / 6, 8 / 9))


@pytest.mark.long
def test_unreadable_weights_write_nothing_and_a_resumed_run_needs_the_same_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Devices", one_device)
    file, folder = tmp_path / "weights.json", tmp_path / "run"
    settings = {"regularization__class_weights": str(file), "epochs": 1}
    with pytest.raises(UserError, match="or a readable file"):
        run(folder, **settings)
    assert not folder.exists()
    file.write_text(json.dumps(dict.fromkeys("01234", 1.0)))
    run(folder, **settings)
    assert Run(folder).record()["class_weights"] == [1.0] * 5
    file.write_text(json.dumps(dict.fromkeys("01234", 1.0) | {"3": 9.0}))
    with pytest.raises(UserError, match="the weights have changed since .* began; restore them"):
        run(folder, resume=True, **settings | {"epochs": 2})
    assert Run(folder).config().epochs == 1
