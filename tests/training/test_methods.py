"""Tests of whole runs with the transfer methods: phases, features, averages, and resuming them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import StopAt, assert_same_run, rows_of, run, state_of
from tiny_runs import network as tiny_network

import sft_jax
from sft_jax import data
from sft_jax.config import complete
from sft_jax.data.loader import Loader, StepsPerCall
from sft_jax.errors import StoppedError, UserError
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import AXIS, Devices
from sft_jax.training import features as features_module
from sft_jax.training import trainer as train_module
from sft_jax.training.features import features, recalibrate_batch_norm


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run on the digits 0-4, to be fine-tuned on 5-9."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    run(folder, epochs=4, limit_train_examples=None)
    return folder


def transfer(folder, source, **changes):
    settings = {"init": str(source), "data__source": "digits:5-9", "optimizer__learning_rate": 0.01, **changes}
    return run(folder, **settings)


def best(folder):
    return Run(folder).checkpoints.restore("best").arrays


@pytest.fixture(scope="module")
def untrained(source, tmp_path_factory):
    """The results of a run that learns nothing, as a lower bound for the others."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    return transfer(folder, source, epochs=1, optimizer__learning_rate=0.0, finetune__batch_norm="freeze")


def backbone_moved(folder, source):
    before, after = best(source), best(folder)
    return {
        key.removeprefix("params/")
        for key, array in before.items()
        if key.startswith("params/") and "/fc." not in key and (after[key] != array).any()
    }


@pytest.mark.long
def test_a_linear_probe_trains_only_the_head(source, tmp_path):
    """A linear probe keeps the backbone and its statistics, and its closed form is good before the first step."""
    results = transfer(tmp_path / "run", source, finetune__method="head", epochs=2)
    assert results["test_accuracy"] > 0.6, "0.2 is chance"
    assert not backbone_moved(tmp_path / "run", source)
    before, after = best(source), best(tmp_path / "run")
    for key in before:
        if key.startswith("batch_stats/"):
            np.testing.assert_array_equal(after[key], before[key])
    at_rest = transfer(tmp_path / "still", source, finetune__method="head", epochs=1, optimizer__learning_rate=0.0)
    assert at_rest["test_accuracy"] > 0.6, "the closed form itself"
    assert rows_of(tmp_path / "still")[0]["val_accuracy"] == at_rest["best_val_accuracy"]


PHASES = {
    "finetune__method": "head_then_full",
    "finetune__head_epochs": 2,
    "finetune__head_learning_rate": 0.001,
    "epochs": 3,
    "regularization__ema": 0.9,
    "regularization__l2_sp": 0.01,
    "optimizer__schedule": "cosine",
}


@pytest.fixture(scope="module")
def two_phase_run(source, tmp_path_factory):
    """An uninterrupted run with `PHASES`."""
    folder = tmp_path_factory.mktemp("runs") / "two phases"
    transfer(folder, source, **PHASES)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("calls", [2, 11, 13], ids=["head", "last step of the head", "full"])
def test_a_run_stopped_in_any_phase_resumes_bit_identically(source, two_phase_run, tmp_path, monkeypatch, calls):
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StepsPerCall", lambda: StepsPerCall(seconds=0))
        patch.setattr(train_module, "StopRequest", lambda: StopAt(calls))
        with pytest.raises(StoppedError):
            transfer(tmp_path / "run", source, **PHASES)
    transfer(tmp_path / "run", source, **PHASES, resume=True)
    assert_same_run(tmp_path / "run", two_phase_run)


@pytest.mark.long
def test_learning_rates_and_state_of_two_phases(two_phase_run):
    rates = [row["learning_rate"] for row in rows_of(two_phase_run)]
    of_head = [0.001 * (1 + np.cos(np.pi * fraction)) / 2 for fraction in (4 / 10, 9 / 10)]
    assert rates[:2] == pytest.approx(of_head), "its own cosine, over the two epochs of the head phase"
    assert 0 < rates[2] < 0.002, "the end of a cosine that starts with the last epoch"
    assert {key.partition("/")[0] for key in state_of(two_phase_run).arrays} == {
        "step",
        "params",
        "batch_stats",
        "opt_state",
        "ema",
        "anchor",
    }


@pytest.mark.slow
def test_gradual_unfreezing_reaches_the_stem_last(source, tmp_path):
    two = transfer(tmp_path / "two", source, finetune__method="gradual", epochs=2)
    assert {key.partition(".")[0] for key in backbone_moved(tmp_path / "two", source)} <= {"layer2"}
    assert two["epochs"] == 2
    transfer(tmp_path / "two", source, finetune__method="gradual", epochs=4, resume=True)
    whole = tmp_path / "four"
    transfer(whole, source, finetune__method="gradual", epochs=4)
    arrays = state_of(whole).arrays
    assert (arrays["params/conv1.kernel"] != best(source)["params/conv1.kernel"]).any()
    np.testing.assert_array_equal(
        state_of(tmp_path / "two").arrays["params/conv1.kernel"], arrays["params/conv1.kernel"]
    )


def test_frozen_parameters_and_statistics_are_not_touched(source, tmp_path):
    transfer(
        tmp_path / "run", source, finetune__freeze=("conv1.*", "layer1.*"), finetune__batch_norm="freeze", epochs=1
    )
    moved = backbone_moved(tmp_path / "run", source)
    assert moved
    assert all(key.startswith("layer2") and key.endswith("kernel") for key in moved)


@pytest.mark.long
def test_recalibrated_statistics_come_from_the_new_images(source, tmp_path):
    for mode in ("recalibrate", "freeze_statistics"):
        transfer(tmp_path / mode, source, finetune__batch_norm=mode, epochs=1, limit_train_examples=None)
    kept, measured = (best(tmp_path / mode) for mode in ("freeze_statistics", "recalibrate"))
    key = "batch_stats/layer2.0.bn2.mean"
    np.testing.assert_array_equal(kept[key], best(source)[key])
    assert (measured[key] != kept[key]).any()


@pytest.mark.long
def test_the_average_is_evaluated_as_well_as_the_weights(source, tmp_path):
    transfer(tmp_path / "run", source, regularization__ema=0.8, epochs=2)
    for row in rows_of(tmp_path / "run"):
        assert row["val_accuracy"] == max(row["raw_val_accuracy"], row["ema_val_accuracy"])
    arrays = state_of(tmp_path / "run").arrays
    assert (arrays["ema/fc.kernel"] != arrays["params/fc.kernel"]).any()


@pytest.mark.long
def test_early_stopping_ends_a_run_without_improvement(source, tmp_path, capsys):
    settings = {
        "regularization__early_stopping": 2,
        "epochs": 9,
        "optimizer__learning_rate": 0.0,
        "finetune__batch_norm": "freeze",
    }
    results = transfer(tmp_path / "run", source, **settings)
    assert (results["best_epoch"], results["epochs"]) == (1, 3)
    assert "stopped early: validation accuracy has not improved since epoch 1" in capsys.readouterr().out
    transfer(tmp_path / "run", source, **settings, resume=True)
    assert len(rows_of(tmp_path / "run")) == 3
    assert "all epochs are done" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"finetune__method": "head_then_full", "finetune__head_epochs": 4}, 4 + 2),
        ({"data__size_schedule": (("8", 0.5),)}, 4 + 2),
    ],
    ids=["head_then_full", "sizes"],
)
def test_early_stopping_counts_within_the_last_phase(source, tmp_path, capsys, changes, epochs):
    """Nothing is learned, so the first epoch of each phase is its best one; the last phase is still reached."""
    still = {"optimizer__learning_rate": 0.0, "finetune__batch_norm": "freeze"}
    patient = {"regularization__early_stopping": 1, "epochs": 8}
    results = transfer(tmp_path / "run", source, **still, **patient, **changes)
    assert results["epochs"] == epochs
    assert "stopped early: validation accuracy has not improved since epoch 5" in capsys.readouterr().out


@pytest.mark.long
def test_a_run_with_growing_image_sizes_learns(source, untrained, tmp_path):
    results = transfer(tmp_path / "run", source, data__size_schedule=(("8", 0.5),), epochs=2)
    assert results["epochs"] == 2
    assert results["test_loss"] < 0.9 * untrained["test_loss"]


@pytest.mark.long
def test_accuracy_with_mirror_images_is_reported_separately(source, tmp_path):
    results = transfer(tmp_path / "run", source, evaluation__flips=True, epochs=1, limit_eval_examples=None)
    assert 0 < results["test_accuracy_flips"] != results["test_accuracy"], "a mirrored digit looks like another digit"
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


@pytest.mark.long
def test_accuracy_with_crops_is_that_of_their_mean_logits(source, tmp_path):
    settings = {"data__crop_pct": 0.75, "data__keep_size": 24, "data__crop_scale": (0.5, 1.0), "data__repeats": 2}
    results = transfer(tmp_path / "run", source, evaluation__crops=5, evaluation__flips=True, epochs=1, **settings)
    folder, config = Run(tmp_path / "run"), Run(tmp_path / "run").config()
    test = data.load_dataset(config.data, seed=0, limit_eval=config.limit_eval_examples).test
    classifier = sft_jax.load(folder.folder)
    logits = []
    for place in data.PLACES:
        inputs = classifier.preprocess.on_device(jnp.asarray(test.images), place)
        logits += [classifier.program(inputs), classifier.program(inputs[:, :, ::-1])]
    hits = np.mean(logits, axis=0).argmax(1) == test.labels
    assert results["test_accuracy_crops"] == hits.mean()
    assert results["test_accuracy"] == (np.asarray(logits[0]).argmax(1) == test.labels).mean()


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"data__auto_augment": "trivial", "data__random_erasing": 0.5, "regularization__mixup": 0.2},
        {"data__augment": "light", "data__color_jitter": (0.2, 0.2, 0.2, 0.1), "data__blur": 0.2},
        {"data__auto_augment": "rand", "regularization__cutmix": 1.0, "regularization__stochastic_depth": 0.2},
        {"optimizer__name": "adamw", "optimizer__learning_rate": 1e-3, "optimizer__schedule": "one_cycle"},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"optimizer__accumulate": 2, "optimizer__nesterov": True, "regularization__clip_norm": 1.0},
                {"optimizer__name": "schedule_free_sgd", "optimizer__learning_rate": 0.1},
                {"optimizer__sam_rho": 0.05, "finetune__layerwise_decay": 0.7, "regularization__label_smoothing": 0.1},
            )
        ),
    ],
    ids=lambda changes: ",".join(changes),
)
def test_options_can_be_combined(source, untrained, tmp_path, changes):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in some of its optimizers
        results = transfer(tmp_path / "run", source, epochs=2, limit_train_examples=None, **changes)
    assert results["test_loss"] < 0.9 * untrained["test_loss"]


def test_indivisible_micro_batches_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"over 8 devices in 3 micro-batches \(optimizer\.accumulate\); .*=48 or 72"):
        run(tmp_path / "run", optimizer__accumulate=3)


# --- Passes over the images that train nothing


@pytest.fixture(scope="module")
def digits():
    config = complete({"data.source": "digits:0-4", "data.size": 16})
    return data.load_dataset(config.data, seed=0, limit_train=100), data.make_preprocess(config.data)


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 8])
def test_features_are_in_the_order_of_the_images(digits, count):
    dataset, preprocess = digits
    network, devices = tiny_network(5, axis_name=AXIS), Devices(jax.devices()[:count])
    extracted = features(
        network,
        network.params,
        network.batch_stats,
        Loader(dataset.train, devices),
        [data.of_image(preprocess), data.of_image(data.mirrored(preprocess))],
        24,
    )
    images = preprocess(dataset.train.images)
    assert extracted.shape == (100, 2, 128)
    for view, inputs in enumerate((images, images[:, :, ::-1])):
        wanted = jax.jit(network.features)(network.params, network.batch_stats, inputs)
        np.testing.assert_allclose(extracted[:, view], wanted, rtol=1e-4, atol=1e-4)


def test_recalibrated_statistics_normalise_the_images(digits):
    """For one batch of all images they equal its batch statistics, so evaluation equals a training forward pass."""
    dataset, preprocess = digits
    network, devices = tiny_network(5, axis_name=AXIS), Devices(jax.devices()[:1])
    order = np.arange(100, dtype=np.int32)[None]
    statistics = recalibrate_batch_norm(
        network, network.params, network.batch_stats, Loader(dataset.train, devices), data.of_image(preprocess), order
    )
    images = preprocess(dataset.train.images)
    local = tiny_network(5)
    in_training, in_evaluation = (jax.jit(functools.partial(local.apply, train=train)) for train in (True, False))
    wanted, _ = in_training(network.params, network.batch_stats, images)
    ours, _ = in_evaluation(network.params, statistics, images)
    np.testing.assert_allclose(ours, wanted, rtol=0.02, atol=0.02 * np.abs(wanted).max())


def test_recalibrated_statistics_do_not_depend_on_the_steps_per_call(digits, monkeypatch):
    """The steps per call depend on timing, but repeated runs on a machine must start bit-identically."""
    dataset, preprocess = digits
    network, devices = tiny_network(5, axis_name=AXIS), Devices(jax.devices()[:1])
    order = np.arange(96, dtype=np.int32).reshape(12, 8)
    statistics = []
    for seconds in (0, 1e9):
        monkeypatch.setattr(features_module, "StepsPerCall", lambda seconds=seconds: StepsPerCall(seconds))
        loader = Loader(dataset.train, devices)
        statistics.append(
            recalibrate_batch_norm(
                network, network.params, network.batch_stats, loader, data.of_image(preprocess), order
            )
        )
    jax.tree.map(np.testing.assert_array_equal, *statistics)
