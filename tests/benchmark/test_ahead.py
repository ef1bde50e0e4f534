"""The benchmark's compilations for devices that are not here, for which a CPU stands in, and the stock network."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from sft_jax import models
from sft_jax.benchmark import __main__ as benchmark
from sft_jax.benchmark import ahead, stock
from sft_jax.config import complete
from sft_jax.errors import UserError, run_command
from sft_jax.models import resnet
from sft_jax.runtime.devices import AbsentDevices

SHALLOW = {
    name: dataclasses.replace(resnet.VARIANTS[name], layers=(1, 1, 1, 1)) for name in ("resnet18", "resnext50_32x4d")
}


@pytest.fixture
def shallow(monkeypatch):
    """Networks of one block a stage under the names of the first basic and the first grouped one."""
    for name, variant in SHALLOW.items():
        monkeypatch.setitem(resnet.VARIANTS, name, variant)
        monkeypatch.setitem(models.ARCHITECTURES, name, resnet.architecture(name, variant))


def network(name):
    return models.Network.abstract(models.builder(complete({"model.name": name}).model, 10))


@pytest.mark.long
@pytest.mark.parametrize("name", SHALLOW)
def test_stock_layers_compute_the_same(name, shallow):
    ours = network(name)
    params, statistics = models.initial_arrays(models.builder(complete({"model.name": name}).model, 10), 0)
    assert stock.use_stock_layers(name)
    theirs = network(name)
    assert jax.tree.map(np.shape, theirs.params) == jax.tree.map(np.shape, params)
    assert theirs.batch_stats.keys() == statistics.keys()
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    def logits(network):
        # As arguments: jax 0.8.1 folds constant kernels of grouped convolutions into wrong ones.
        def apply(params, statistics):
            return [network.apply(params, statistics, images, train=train)[0] for train in (True, False)]

        return jax.jit(apply)(params, statistics)

    for actual, wanted in zip(logits(theirs), logits(ours), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4 * np.ptp(wanted))


def test_other_families_have_no_stock_network():
    assert not stock.use_stock_layers("vit_small_patch16_224")


@pytest.mark.long
def test_both_steps_are_compiled_and_counted(shallow, monkeypatch):
    devices = AbsentDevices(jax.devices()[:2], 4 << 30)
    monkeypatch.setattr(ahead, "absent_devices", lambda name: devices)
    lines = []
    report = ahead.compare(["gpu-h100", "resnet18", 4, 32, "float32"], lines.append)
    assert [line.partition(" compiled in")[0] for line in lines[1:]] == ["sft-jax", "stock Flax"]
    for prefix in ("", "stock_"):
        figures = {figure: report[f"{prefix}{figure}"] for figure in benchmark.COUNTS | benchmark.SIZES}
        assert figures["all_reduces"] > 0
        assert figures["host_transfers"] == 0
        assert figures["train_bytes"] > figures["temp_bytes"] > 0
        assert figures["bytes_accessed"] > 4 * 5e6, "the parameters alone"
    assert report["flops"] == pytest.approx(report["stock_flops"], rel=0.02)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--target", "gpu-h100", "--batch", "4"])
    monkeypatch.setattr(benchmark, "ask", lambda *_: report)
    benchmark.main()


def test_a_refusal_is_one_line(monkeypatch):
    def refuse(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nmore")

    monkeypatch.setattr(ahead, "absent_devices", lambda name: AbsentDevices(jax.devices()[:1], 1 << 30))
    monkeypatch.setattr(ahead.Compiler, "train", refuse)
    wanted = r"sft-jax does not compile for gpu-t4: RuntimeError: RESOURCE_EXHAUSTED: Ran out of memory$"
    with pytest.raises(UserError, match=wanted):
        ahead.compare(["gpu-t4", "resnet18", 4, 32, "float32"], lambda line: None)


def test_a_network_of_texts_is_sent_to_the_doctor(monkeypatch):
    monkeypatch.setattr(ahead, "absent_devices", lambda name: AbsentDevices(jax.devices()[:1], 1 << 30))
    wanted = r"use python -m sft_jax.doctor --config configs/sst2.py --config.model.name=bert_tiny_uncased --target gpu"
    with pytest.raises(UserError, match=wanted):
        ahead.compare(["gpu-t4", "bert_tiny_uncased", 4, 32, "float32"], lambda line: None)


def test_a_target_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--target", "gpu-h100", "--epoch"])
    with pytest.raises(SystemExit) as stopped:
        run_command(benchmark.main)
    assert stopped.value.code == 2
    assert "--target times nothing: leave out --stock and --epoch" in capsys.readouterr().err
