"""Networks of texts against transformers': activations, gradients, padding, files, tokenizers, and what is refused."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import torch
import transformers
from reference_checks import CLASSES, assert_same_function, assert_same_gradients, network
from text_networks import TINY, TOKENIZER, converted, reference_of, register, saved, torch_network
from text_runs import tokenizer

from convert import families, flax_to_resnet, keys, parity, resnet_to_flax
from convert.fit import fit
from convert.sources import read
from sft_jax import load
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network, bert, initial_arrays, modernbert
from sft_jax.models.architecture import Builder
from sft_jax.models.weights import load_weights, save_weights

EACH = pytest.mark.parametrize("name", TINY)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    register(monkeypatch)


@EACH
def test_every_stage_agrees_with_transformers(name):
    """At 33 tokens most are beyond the windows of ModernBERT, and padding sees nothing but padding in some."""
    assert_same_function(torch_network(name), network(ARCHITECTURES[name]), sizes=(1, 11, 33))


@pytest.mark.long
@EACH
def test_gradients_agree(name):
    # transformers computes ModernBERT's softmax and rotations in float32.
    tolerance = 1e-6 if name.startswith("modernbert") else 1e-7
    assert_same_gradients(torch_network(name), ARCHITECTURES[name], size=7, tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_of_test", "modernbert_of_test"])
def test_rematerialised_layers_give_the_same_gradients(name):
    """Dropout included: the second pass through a layer drops what the first one did."""
    architecture = ARCHITECTURES[name]
    inputs = reference_of(name).inputs(torch_network(name), 9, 3, seed=0)
    params, _ = initial_arrays(Builder(architecture, CLASSES), 0)
    found = []
    for rematerialise in (False, True):
        rates = {"dropout": 0.25, "attention_dropout": 0.25}
        ours = Network.abstract(Builder(architecture, CLASSES, rates, rematerialise=rematerialise))

        def loss(params, ours=ours):
            logits, _ = ours.apply(params, {}, *inputs, train=True, key=jax.random.key(0))
            return jnp.square(logits).sum()

        gradients = jax.jit(jax.grad(loss))
        again = str(gradients.trace(params).jaxpr).count("differentiated=True")
        assert again == (len(architecture.channels) if rematerialise else 0)
        found.append(jax.device_get(gradients(params)))
    for key, wanted in found[0].items():
        np.testing.assert_allclose(found[1][key], wanted, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.long
@EACH
def test_padding_changes_nothing(name):
    module, ours = torch_network(name), network(ARCHITECTURES[name])
    arrays = keys.to_flax(module.state_dict(), ours)
    tokens, segments = reference_of(name).inputs(module, 9, 3, seed=0)
    padding = ARCHITECTURES[name].texts.padding
    longer = [
        np.pad(array, ((0, 0), (0, 5)), constant_values=fill) for array, fill in ((tokens, padding), (segments, 0))
    ]
    assert (tokens == padding).any(), "some are shorter"
    logits = [parity.flax_activations(ours, arrays, inputs)[1] for inputs in ((tokens, segments), longer)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    text = tokens[2:, : int((tokens[2] != padding).sum())]
    _, alone = parity.flax_activations(ours, arrays, (text, segments[2:, : text.shape[1]]))
    np.testing.assert_allclose(alone[0], logits[0][2], rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", [*bert.VARIANTS, *modernbert.VARIANTS])
def test_names_and_shapes_are_those_of_transformers(name):
    ours = Network.abstract(Builder(ARCHITECTURES[name], 3))
    shapes = reference_of(name).empty(name, 3).state_dict()
    assert not keys.problems({key: torch.ones(()).expand(tensor.shape) for key, tensor in shapes.items()}, ours)
    for key in ours.params:
        assert ours.architecture.depth(key)


def bare(tensors):
    """Returns the names of `BertModel` and `ModernBertModel`."""
    pairs = ((key.partition("."), tensor) for key, tensor in tensors.items())
    return {key: tensor for (kind, _, key), tensor in pairs if kind in ("bert", "model")}


def of_google(tensors):
    leaves = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {re.sub("|".join(leaves), lambda found: leaves[found[0]], key): tensor for key, tensor in tensors.items()}
    return renamed | {"cls.predictions.bias": torch.zeros(40), "cls.seq_relationship.weight": torch.zeros(2, 24)}


def without_classifier(tensors):
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("classifier")}


FORMS = {
    "its own": (lambda tensors: tensors, []),
    "half": (lambda tensors: {key: t.half() for key, t in tensors.items()}, ["were cast from float16"]),
    "wrapped": (lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()}, ["prefix"]),
    "encoder": (bare, ["its keys are those of the encoder alone", "no head"]),
    "wrapped encoder": (
        lambda tensors: {f"my_model.{key}": tensor for key, tensor in bare(tensors).items()},
        ["its keys are those of the encoder alone", "no head"],
    ),
}
OF_BERT = {
    "Google's": (
        lambda tensors: of_google(without_classifier(tensors)),
        ["no head", "dropped, not part of the network: cls.predictions.bias"],
    ),
    "with a constant": (lambda tensors: tensors | {"bert.embeddings.position_ids": torch.arange(512)[None]}, []),
}
OF_MODERNBERT = {
    "published": (
        lambda tensors: without_classifier(tensors) | {"decoder.bias": torch.zeros(40)},
        ["no head", "dropped, not part of the network: decoder.bias"],
    ),
    "with its decoder": (
        lambda tensors: (
            without_classifier(tensors) | {"decoder.bias": torch.zeros(40), "decoder.weight": torch.zeros(40, 24)}
        ),
        ["no head", "dropped, not part of the network: decoder.bias, decoder.weight"],
    ),
}
FILES = {"bert_of_test": FORMS | OF_BERT, "modernbert_of_test": FORMS | OF_MODERNBERT}


@pytest.mark.long
@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in FILES.items() for form in forms])
def test_files_of_transformers_are_read(name, form, tmp_path):
    change, told = FILES[name][form]
    tensors = torch_network(name).state_dict()
    checkpoint = read(saved(change(dict(tensors)), tmp_path), arch=name)
    fitted = fit(checkpoint.state_dict, name, "file")
    for line in told:
        assert any(line in notice for notice in (*checkpoint.notices, *fitted.notices)), line
    assert parity.compare(fitted.module, fitted.network, fitted.arrays, 9).relative < 1e-5
    wanted = keys.to_flax(tensors, network(ARCHITECTURES[name]))
    if new := [notice for notice in fitted.notices if "a new one was drawn" in notice]:
        assert (name, form.endswith("encoder")) == ("modernbert_of_test", True), new
        wanted |= {key: fitted.arrays[key] for key in wanted if key.startswith("pooler.")}
    for key, array in fitted.weights().items():
        np.testing.assert_allclose(
            array, wanted[key], rtol=1e-3 if form == "half" else 0, atol=1e-3 if form == "half" else 0
        )


@pytest.mark.parametrize(
    ("name", "place", "encoder", "deviation"),
    [
        ("roberta_of_test", "classifier.dense", "roberta.", 0.02),
        ("distilbert_of_test", "pre_classifier", "distilbert.", 0.02),
        ("modernbert_of_test", "head.dense", "model.", 0.02 / 8**0.5),
    ],
)
def test_the_layer_before_a_missing_head_is_new_and_said_so(name, place, encoder, deviation, tmp_path):
    tensors = torch_network(name).state_dict()
    alone = {key.removeprefix(encoder): tensor for key, tensor in tensors.items() if key.startswith(encoder)}
    checkpoint = read(saved(alone, tmp_path), arch=name)
    fitted = fit(checkpoint.state_dict, name, "file")
    assert fitted.notices == [
        f"it has no {place}, the layer before the head: a new one was drawn, as transformers does"
    ]
    assert fitted.classes == 0
    assert fitted.arrays["pooler.dense.kernel"].std() == pytest.approx(deviation, rel=0.1)
    # With a head nothing may be missing.
    without = {key: tensor for key, tensor in tensors.items() if not key.startswith(place)}
    checkpoint = read(saved(without, tmp_path), arch=name)
    with pytest.raises(UserError, match=f"{place}.weight is missing"):
        fit(checkpoint.state_dict, name, "file")


@pytest.mark.parametrize(
    ("other", "name", "title"),
    [
        ("bert_tiny_uncased", "bert_of_test", "BERT: it has no encoder.layer.0.attention.self.query.weight"),
        ("modernbert_base", "modernbert_of_test and .*_cls", r"ModernBERT: it has no layers.0.attn.Wqkv.weight"),
    ],
)
def test_another_network_is_named(other, name, title, tmp_path):
    checkpoint = read(saved(torch_network(name.split()[0]).state_dict(), tmp_path), arch=other)
    with pytest.raises(UserError, match=f"does not fit {other}, but fits {name}"):
        fit(checkpoint.state_dict, other, "file")
    checkpoint = read(saved({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path), arch=other)
    with pytest.raises(UserError, match=f"is not a {title}"):
        fit(checkpoint.state_dict, other, "file")


@pytest.mark.parametrize(
    ("name", "network", "lengths"),
    [
        ("bert_of_test", "BertForSequenceClassification", ["16 tokens", "37 tokens", "encoder.layer.1"]),
        ("modernbert_of_test", "ModernBertForSequenceClassification", ["16 tokens", "20 tokens", "layers.3"]),
    ],
)
def test_the_command_converts_there_and_back_with_the_tokenizer(name, network, lengths, tmp_path, capsys):
    module = torch_network(name)
    output = converted(saved(module.state_dict(), tmp_path), name, "--classes", "a,b,c,d,e")
    said = capsys.readouterr().out
    assert all(part in said for part in lengths)
    weights = load_weights(output)
    assert json.loads(weights.metadata["tokenizer"]) == TOKENIZER
    assert weights.class_names == ("a", "b", "c", "d", "e")
    certificate = json.loads(output.with_name("ours.safetensors.json").read_text())
    assert "tokenizer" not in certificate
    assert certificate["versions"]["transformers"] == transformers.__version__
    flax_to_resnet.convert(None, output, tmp_path / "back.safetensors")
    said = capsys.readouterr().out
    assert f"transformers.{network}(config)  # num_labels={CLASSES}" in said
    assert "tokenizer, also in its metadata" in said
    with safetensors.safe_open(tmp_path / "back.safetensors", "pt") as file:
        assert json.loads(file.metadata()["tokenizer"]) == TOKENIZER
        back = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert back.keys() == module.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("tokenizer", "flags", "message"),
    [
        (None, [], "there is no tokenizer.json beside .*; name the tokenizer .*: --tokenizer FILE"),
        (None, ["--tokenizer", "nothing.json"], "no such file: nothing.json"),
        ([], [], "is not a tokenizer with a vocabulary"),
        ({"model": {"vocab": {"a": 40}}}, [], "has 41 kinds of tokens, but bert_of_test only 40"),
        ({"model": {"vocab": [["a", -1.0]] * 42}}, [], "has 42 kinds of tokens, but bert_of_test only 40"),
        (TOKENIZER, ["--size", "32"], "--size 32 has no meaning for bert_of_test, which takes texts"),
    ],
)
def test_a_wrong_flag_or_tokenizer_is_a_one_line_error(tokenizer, flags, message, tmp_path):
    file = saved(torch_network("bert_of_test").state_dict(), tmp_path, tokenizer)
    with pytest.raises(UserError, match=message) as raised:
        converted(file, "bert_of_test", *flags)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("ours*"))


def test_a_tokenizer_for_images_is_refused(tmp_path):
    (tmp_path / "resnet.pth").touch()
    with pytest.raises(UserError, match="--tokenizer t.json has no meaning for resnet18, which takes images"):
        resnet_to_flax.convert(
            "resnet18", tmp_path / "resnet.pth", "", tmp_path / "o.safetensors", tokenizer=Path("t.json")
        )


@pytest.mark.long
@EACH
def test_a_converted_classifier_predicts_texts(name, tmp_path):
    module, reference = torch_network(name), reference_of(name)
    classifier = load(converted(saved(module.state_dict(), tmp_path, json.loads(tokenizer())), name))
    texts = ["good word1", "bad word4 dull word2 word3", "fine"]
    read = classifier.reading.read([(text,) for text in texts])
    assert classifier.reading.padding == ARCHITECTURES[name].texts.padding
    with torch.no_grad():
        wanted = reference.logits(module, reference.given(module, read.tokens, read.segments))
    np.testing.assert_allclose(classifier.logits(texts), wanted, rtol=1e-4, atol=1e-5)
    assert classifier.task_name == "text"


def test_weights_without_a_tokenizer_are_refused(tmp_path):
    output = converted(saved(torch_network("bert_of_test").state_dict(), tmp_path), "bert_of_test")
    weights = load_weights(output)
    del weights.metadata["tokenizer"]
    save_weights(output, weights)
    with pytest.raises(UserError, match=r"has no tokenizer; convert it again, with --tokenizer FILE"):
        load(output)


def test_transformers_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"converting bert_of_test needs transformers: pip install .*\[text\]"):
        families.reference_of("bert_of_test")
