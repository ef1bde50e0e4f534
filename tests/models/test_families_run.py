"""A tiny network of each family learns, with layer-wise decay and stochastic depth, is resumed and exported."""

import jax
import numpy as np
import pytest
from tiny_runs import StopAt, assert_same_run, one_device, run

from sft_jax.errors import StoppedError
from sft_jax.export import export
from sft_jax.models import ARCHITECTURES, dinov3, mit, mobilenet, regnet, resnet, swin, vit
from sft_jax.models.architecture import Pretrained
from sft_jax.models.mobile import Row
from sft_jax.training import trainer as train_module

_V3 = mobilenet.VARIANTS["mobilenet_v3_small"].style
_V4 = mobilenet.VARIANTS["mobilenetv4_conv_small"].style
_V3_ROWS = ((Row("separable", 3, 1, 8, 8), Row("inverted", 3, 2, 32, 16), Row("inverted", 5, 1, 32, 16)),)
_V4_ROWS = ((Row("universal", 3, 2, 16, 16, start=3), Row("universal", 0, 1, 32, 16, start=3)),)
_SHAPE = vit.Variant(4, 24, 2, 3, 1e-1, 4, pool="patches", rotary=True, biases="qv", epsilon=1e-5)
TINY = {
    "resnet18d": resnet.architecture("tiny_family", resnet.Variant(resnet.BasicBlock, (1, 1, 0, 0), deep=True)),
    "mobilenet_v3": mobilenet.architecture("tiny_family", mobilenet.Variant(8, _V3_ROWS, 32, "linear", _V3)),
    "mobilenetv4_conv_small": mobilenet.architecture(
        "mobilenetv4_conv_small", mobilenet.Variant(8, _V4_ROWS, 32, "normed", _V4)
    ),
    "regnet_y": regnet.architecture("tiny_family", regnet.Variant((1, 2, 1, 1), (8, 16, 16, 24), 8)),
    "swin": swin.architecture("tiny_family", swin.Variant((1, 2, 1, 1), (1, 1, 2, 2), 16, window=2)),
    "swin_v2": swin.architecture("tiny_family", swin.Variant((1, 2, 1, 1), (1, 1, 2, 2), 16, window=2, second=True)),
    "mit": mit.architecture("tiny_family", mit.Variant((1, 1, 1, 1), (8, 16, 20, 32))),
    "dinov3": dinov3.architecture("tiny_family", _SHAPE, Pretrained(16, 16)),
}
CHANGES = {
    "model__name": "tiny_family",
    "optimizer__name": "adamw",
    "optimizer__learning_rate": 5e-3,
    "finetune__layerwise_decay": 0.9,
    "regularization__stochastic_depth": 0.1,
}
# Norms after the branches make a slow start; the reduced keys need larger images.
OWN = {"swin_v2": {"epochs": 16, "finetune__layerwise_decay": 1.0}, "mit": {"data__size": 32}}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_learns_resumes_and_exports(name, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny_family", TINY[name])
    monkeypatch.setattr(train_module, "Devices", one_device)
    changes = CHANGES | {"epochs": 8} | OWN.get(name, {})
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its bias correction
        results = run(tmp_path / "whole", **changes)
        assert results["test_loss"] < np.log(5)
        with monkeypatch.context() as patch:
            patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
            with pytest.raises(StoppedError):
                run(tmp_path / "stopped", **changes)
        run(tmp_path / "stopped", resume=True, **changes)
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")
        difference, _ = export(tmp_path / "whole", "best", tmp_path / "program.stablehlo")
    assert difference < 1e-5
