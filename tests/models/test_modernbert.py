"""ModernBERT alone: published files, its settings, positions, windows and dropout."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from reference_checks import CLASSES, moved, network
from text_networks import converted, reference_of, register, saved, torch_network
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from convert import keys, parity
from convert.fit import fit
from convert.sources import read
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, catalogue, initial_arrays
from sft_jax.models.architecture import HEAD_DEPTH, Builder
from sft_jax.models.dropout import Dropout
from sft_jax.models.modernbert import GLOBAL_THETA, LOCAL_THETA, VARIANTS
from sft_jax.models.rotary import text_rotation

NAME, CLS = "modernbert_of_test", "modernbert_of_test_cls"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    register(monkeypatch)


def test_the_layer_before_the_decoder_is_that_before_the_classifier(tmp_path):
    """As transformers loads the published files, which are those of masked language modelling."""
    pretrained = moved(transformers.ModernBertForMaskedLM(torch_network(NAME).config))
    pretrained.save_pretrained(tmp_path)
    theirs = transformers.ModernBertForSequenceClassification.from_pretrained(
        tmp_path, num_labels=CLASSES, attn_implementation="eager"
    )
    wanted = theirs.eval().state_dict()
    checkpoint = read(tmp_path / "model.safetensors", arch=NAME)
    assert checkpoint.notices == [
        "no head: the converted file has none, and fine-tuning initialises a new one",
        "dropped, not part of the network: decoder.bias",
    ]
    fitted = fit(checkpoint.state_dict, NAME, "file")
    assert fitted.notices == []
    for name, tensor in keys.to_torch(fitted.weights(), fitted.network.architecture).items():
        assert torch.equal(tensor, wanted[name]), name
    head = keys.to_flax(wanted, network(ARCHITECTURES[NAME]))
    arrays = fitted.weights() | {name: array for name, array in head.items() if name.startswith("classifier.")}
    assert parity.compare(theirs, network(ARCHITECTURES[NAME]), arrays, 20).relative < 1e-5


def test_the_variants_are_transformers_defaults():
    wanted = transformers.ModernBertConfig().to_dict()
    found = reference_of("modernbert_base").empty("modernbert_base", 2).config.to_dict()
    assert {name for name in wanted if found[name] != wanted[name]} == {"classifier_pooling"}
    assert found["classifier_pooling"] == "mean"
    assert catalogue.published("modernbert_large")[0].name == "answerdotai/ModernBERT-large"


@pytest.mark.parametrize(("kind", "theta"), [("full_attention", GLOBAL_THETA), ("sliding_attention", LOCAL_THETA)])
def test_positions_are_those_of_transformers_up_to_the_longest_text(kind, theta):
    config = reference_of("modernbert_base").empty("modernbert_base", 2).config
    cos, sin = ModernBertRotaryEmbedding(config)(torch.zeros(1), torch.arange(8192)[None], kind)
    ours = text_rotation(8192, 64, theta, jnp.float32)
    # torch's powers differ in the last bit from processor to processor, which grows with the angle.
    angles = np.arange(8192)[:, None] / theta ** (np.arange(64) % 32 / 32)
    tolerance = 1e-6 + angles * np.finfo(np.float32).eps
    for part in (0, 1):
        np.testing.assert_array_less(np.abs(ours.cos[:, part, 0] - cos[0].numpy()), tolerance)
        np.testing.assert_array_less(np.abs(ours.sin[:, part, 0] - sin[0].numpy()), tolerance)
    assert not ours.sin[:, 2].any()


def reach(first, index):
    """Returns which of 12 tokens change after layer `index` if the first one does, before the layer or in the text."""
    ours, variant = network(ARCHITECTURES[NAME]), VARIANTS[NAME]
    params, _ = initial_arrays(Builder(ours.architecture, CLASSES), 0)
    model = ours.bind(params, {})
    tokens = np.full((2, 12), 3, np.int32)
    tokens[1, first] = 4
    stages = dict(model.stages(jnp.asarray(tokens), jnp.zeros((2, 12), jnp.uint8)))
    before = stages["embeddings"].reshape(24, variant.width)
    rotation = text_rotation(12, variant.width // variant.heads, LOCAL_THETA, jnp.float32)
    after = model.layers[index](before, jnp.ones((2, 12), bool), rotation, dropout=Dropout(0.0, None, None))
    one, other = np.asarray(after).reshape(2, 12, -1)
    return np.flatnonzero(np.abs(one - other).max(-1)).tolist()


@pytest.mark.long
def test_every_third_layer_sees_the_whole_text_and_the_others_a_window():
    assert [len(reach(0, index)) for index in range(4)] == [12, 5, 5, 12]
    assert reach(6, 1) == list(range(2, 11))


def config_of(name, **changes):
    return reference_of(name).empty(name, CLASSES).config.to_dict() | changes


OLD = {"rope_parameters": None, "layer_types": None, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"model_type": "other", "local_attention": 2}, None),
        (OLD | {"local_rope_theta": 10000.0}, None),
        (
            {"classifier_pooling": "cls"},
            "classifier_pooling='cls', as .* says, not 'mean': use --arch modernbert_of_.*cls",
        ),
        ({"local_attention": 16}, "has local_attention=16, as .* says, not 8, and no other network has it"),
        (OLD | {"local_rope_theta": 500.0}, "has rope_parameters=.*500.0.*, and no other network has it"),
        (OLD | {"global_attn_every_n_layers": 2}, "has layer_types=.*, and no other network has it"),
        ({"norm_eps": "small"}, "config.json beside .* is not that of a ModernBERT: "),
    ],
)
def test_a_config_that_says_another_function_is_refused(changes, message, tmp_path):
    file = saved(torch_network(NAME).state_dict(), tmp_path)
    content = {key: value for key, value in config_of(NAME, **changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    if message is None:
        converted(file, NAME)
        return
    with pytest.raises(UserError, match=message) as raised:
        converted(file, NAME)
    assert "\n" not in str(raised.value)


def test_the_pooling_of_a_missing_head_does_not_matter(tmp_path):
    tensors = torch_network(NAME).state_dict()
    file = saved({key: tensor for key, tensor in tensors.items() if key.startswith("model.")}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_of(NAME)))
    converted(file, CLS)


def test_an_older_transformers_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "4.57.3")
    with pytest.raises(UserError, match=r"needs transformers 5 or later, not 4\.57\.3: pip install -U transformers"):
        reference_of(NAME).empty(NAME, 2)


def test_depths_and_decay():
    ours = network(ARCHITECTURES[NAME])
    depths = {ours.architecture.depth(name) for name in ours.params}
    assert sorted(depths) == [*((layer, 0) for layer in range(5)), HEAD_DEPTH]
    assert ours.architecture.depth("pooler.dense.kernel") == (4, 0)
    norms = [name for name in ours.params if re.search(r"norm\.\w+$", name)]
    assert len(norms) == 1 + 2 * 4 - 1 + 2, "none before the first attention"
    assert not any(ours.architecture.decays(name) for name in norms)


def test_dropout_is_after_the_embeddings_in_the_mlps_and_before_the_classifier(monkeypatch):
    seen = []

    def record(self, x, examples):
        seen.append((self._dropped, x.shape, examples))
        return x

    monkeypatch.setattr("sft_jax.models.dropout.Dropout.__call__", record)
    ours = network(ARCHITECTURES[NAME], dropout=0.1)
    params, _ = initial_arrays(Builder(ours.architecture, CLASSES), 0)
    inputs = jax.ShapeDtypeStruct((2, 6), np.int32), jax.ShapeDtypeStruct((2, 6), np.uint8)
    jax.eval_shape(lambda *inputs: ours.apply(params, {}, *inputs, train=True, key=jax.random.key(0))[0], *inputs)
    assert seen == [(26, (12, 24), 2), *[(26, (12, 36), 2)] * 4, (26, (2, 24), 2)]
