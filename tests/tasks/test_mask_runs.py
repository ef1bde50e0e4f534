"""Tests runs on pictures with masks: exact metrics, resuming, several devices, and what is refused."""

import json

import jax
import numpy as np
import pytest
from commands import called
from mask_folders import NAMES, VOID, fill, parts
from mask_runs import run_on
from PIL import Image
from sklearn import metrics
from tiny_runs import StopAt, assert_same_run, one_device, rows_of, state_of

import sft_jax
import sft_jax.embed.__main__ as embedding
import sft_jax.inspect.__main__ as inspecting
from convert import flax_to_onnx, flax_to_resnet
from sft_jax.config import complete, flatten
from sft_jax.doctor import ahead, planned
from sft_jax.doctor.finding import Report
from sft_jax.errors import StoppedError, UserError
from sft_jax.evaluate import evaluate
from sft_jax.evaluate import main as evaluating
from sft_jax.inference.windows import View, seen_in_windows
from sft_jax.report import segmentation
from sft_jax.report.__main__ import rewrite
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.runtime.devices import AbsentDevices, Devices
from sft_jax.search import session
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space
from sft_jax.training import trainer as train_module
from sft_jax.training.experiment import Experiment
from sft_jax.training.start import earlier, read_dataset


@pytest.fixture(autouse=True, scope="module")
def alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Devices", one_device)
        yield


@pytest.fixture(scope="module")
def trained(alone, tmp_path_factory):
    """Returns the folder of pictures and masks, the run, and its results."""
    base = tmp_path_factory.mktemp("masks")
    source = parts(base / "set")
    return source, base / "run", run_on(source, base / "run", observed=True, epochs=12)


def restored(folder, count=1, **changes):
    """Returns the run's experiment and its best weights on `count` devices."""
    run = Run(folder)
    config = complete(flatten(run.config()) | {key.replace("__", "."): value for key, value in changes.items()})
    dataset = read_dataset(config, Console(mute=True), before=earlier(run))
    experiment = Experiment(config, dataset, Devices(jax.devices()[:count]))
    return experiment, experiment.weights(run.restored("best").arrays)


def test_a_run_learns_and_reports_its_metrics(trained):
    _, folder, results = trained
    rows = rows_of(folder)
    assert {"train_loss", "train_pixel_accuracy", "val_loss", "val_mean_iou", "val_mean_accuracy"} <= rows[0].keys()
    assert results["best_val_mean_iou"] == max(row["val_mean_iou"] for row in rows) == rows[-1]["best"]
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    # The ground alone would be 0.25.
    assert results["test_mean_iou"] > 0.6
    assert results["class_names"] == list(NAMES)
    assert len(results["per_class_iou"]) == len(results["per_class_accuracy"]) == 3
    log = (folder / "train.log").read_text()
    assert "a class per pixel, 3 classes, 25.0% of the training pixels are of none" in log
    assert f"test mean IoU {results['test_mean_iou']:.2%}, pixel accuracy {results['test_pixel_accuracy']:.2%}" in log


@pytest.mark.long
@pytest.mark.parametrize(
    ("count", "placement", "batch"), [(1, "auto", 8), (8, "replicated", 8), (8, "sharded", 8), (2, "auto", 6)]
)
def test_evaluation_is_exact_on_any_number_of_devices(trained, count, placement, batch):
    _, folder, results = trained
    experiment, weights = restored(folder, count, data__placement=placement, batch_size=batch)
    ours = experiment.test(*weights)
    split = experiment.dataset.test
    inputs = experiment.preprocess({"image": split.images, "mask": split.targets["mask"]})
    outputs = jax.jit(lambda images: experiment.network.apply(*weights, images, train=False)[0])(inputs["image"])
    valid = np.asarray(inputs["mask"]) != 255
    truth, said = np.asarray(inputs["mask"])[valid], np.asarray(outputs).argmax(-1)[valid]
    np.testing.assert_array_equal(ours["confusion"], metrics.confusion_matrix(truth, said, labels=range(3)))
    overlaps = metrics.jaccard_score(truth, said, labels=range(3), average=None)
    np.testing.assert_allclose(ours["per_class_iou"], overlaps, rtol=1e-12)
    for found in (ours, results):
        assert found["test_mean_iou"] == pytest.approx(overlaps.mean(), rel=1e-12)
        assert found["test_loss"] == pytest.approx(ours["test_loss"], rel=1e-5)
        assert found["test_count"] == 9


def test_the_command_evaluates_it_again(trained):
    _, folder, results = trained
    again, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    assert again.keys() == results.keys()
    assert again["confusion"] == results["confusion"]
    assert again["test_mean_iou"] == results["test_mean_iou"]


def evaluated(monkeypatch, capsys, *flags):
    """Runs the command; returns its results and what it printed on standard error."""
    code, printed, said = called(monkeypatch, capsys, evaluating, "evaluate", *flags, "--json")
    assert code == 0, said
    return json.loads(printed), said


@pytest.mark.long
def test_a_split_evaluated_as_other_data_gives_the_same(trained, monkeypatch, capsys):
    source, folder, results = trained
    found, said = evaluated(monkeypatch, capsys, "--workdir", folder, "--data", f"masks:{source}", "--split", "test")
    assert {name: found[name] for name in results if name != "test_loss"} == {
        name: value for name, value in results.items() if name != "test_loss"
    }
    assert found["test_loss"] == pytest.approx(results["test_loss"], rel=1e-5)
    assert "the run was trained on" not in said
    _, said = evaluated(monkeypatch, capsys, "--workdir", folder, "--data", f"masks:{source}", "--split", "train")
    assert "the run was trained on 24 images of masks:" in said


@pytest.mark.long
def test_metrics_of_own_pixels_are_those_of_the_predicted_masks(trained, tmp_path, monkeypatch, capsys):
    """Of pictures of another size, with the classes in another order and another value for pixels of none."""
    _, folder, _ = trained
    fill(tmp_path, 5, start=5000, width=37, height=41)
    order = [2, 0, 1]
    (tmp_path / "classes.txt").write_text("\n".join(NAMES[place] for place in order))
    truths = []
    for file in sorted((tmp_path / "masks").iterdir()):
        truth = np.asarray(Image.open(file))
        truths.append(truth)
        renumbered = np.where(truth == VOID, 99, np.argsort(order)[np.minimum(truth, 2)]).astype(np.uint8)
        Image.fromarray(renumbered).save(file)
    flags = ["--workdir", folder, "--data", f"masks:{tmp_path}", "--config.data.ignore_index=99"]
    found, _ = evaluated(monkeypatch, capsys, *flags)
    predicted = sft_jax.load(folder).predict(sorted((tmp_path / "images").iterdir()))
    known = [truth != VOID for truth in truths]
    pairs = [
        np.concatenate([own[there] for own, there in zip(masks, known, strict=True)]) for masks in (truths, predicted)
    ]
    assert found["own_size_confusion"] == metrics.confusion_matrix(*pairs, labels=[0, 1, 2]).tolist()
    assert found["own_size_mean_iou"] == pytest.approx(metrics.jaccard_score(*pairs, average="macro"))
    assert found["own_size_unseen"] == 0
    assert found["test_count"] == 5
    assert 0 < sum(map(sum, found["confusion"])) < 5 * 16 * 16  # of the squares, which are padded
    closer, _ = evaluated(monkeypatch, capsys, *flags, "--windows", 32)
    (kept,) = (folder / "evaluations").glob("*_windows32_best.json")
    assert json.loads(kept.read_text()) == closer
    assert closer["confusion"] == found["confusion"]
    view, network = View(32), sft_jax.load(folder)
    images = (np.asarray(Image.open(file)) for file in sorted((tmp_path / "images").iterdir()))
    masks = [seen_in_windows(network, image, view) for image in images]
    pairs[1] = np.concatenate([own[there] for own, there in zip(masks, known, strict=True)])
    assert closer["own_size_confusion"] == metrics.confusion_matrix(*pairs, labels=[0, 1, 2]).tolist()
    mirrored, _ = evaluated(monkeypatch, capsys, *flags, "--flips")
    assert mirrored["test_loss"] != found["test_loss"]
    assert mirrored["test_mean_iou"] == pytest.approx(found["test_mean_iou"], abs=0.1)


def test_masks_that_cannot_be_evaluated_are_refused(trained, tmp_path, monkeypatch, capsys):
    _, folder, _ = trained
    fill(tmp_path, 2)
    flags = ["--workdir", folder, "--data", f"masks:{tmp_path}"]
    (tmp_path / "classes.txt").write_text("ground\nsquare\nring")
    code, _, said = called(monkeypatch, capsys, evaluating, "evaluate", *flags)
    assert code == 2
    assert "has classes that the network does not have: 'ring'" in said
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    code, _, said = called(monkeypatch, capsys, evaluating, "evaluate", *flags, "--config.data.ignore_index=99")
    assert code == 2
    assert f"if it marks pixels to ignore, use --config.data.ignore_index={VOID}" in said
    for file in (tmp_path / "masks").iterdir():
        Image.new("L", (24, 20), VOID).save(file)
    code, _, said = called(monkeypatch, capsys, evaluating, "evaluate", *flags)
    assert code == 2
    assert "no pixel that the network sees has a class, all are ignored" in said
    (tmp_path / "images" / "000.png").write_bytes(b"no image")
    code, _, said = called(monkeypatch, capsys, evaluating, "evaluate", *flags)
    assert code == 2
    assert "000.png cannot be read: " in said
    assert "repair or remove unreadable files" in said


def test_streamed_pictures_give_the_same(trained, monkeypatch):
    _, folder, results = trained
    monkeypatch.setattr("sft_jax.data.images.reading.MEMORY_FRACTION", 0.0)
    again, _, _ = evaluate(Run(folder), "test", "best", [], Console(mute=True))
    assert again["confusion"] == results["confusion"]


def test_the_report_shows_pictures_with_their_masks(trained, tmp_path, monkeypatch):
    _, folder, results = trained
    page = (folder / "report.html").read_text()
    for text in ("Per class", "Worst pictures", "Best pictures", "predicted mask of test/images/00", "Mean IoU"):
        assert text in page
    assert f"{results['test_mean_iou']:.2%}" in page
    assert page.count("data:image/png") == 3 * (9 + 4)
    monkeypatch.setattr(segmentation, "WORST", 2)
    monkeypatch.setattr(segmentation, "MOST_PIXELS", 0)
    some = rewrite(folder, tmp_path / "some.html", explain=False).read_text()
    assert "The 2 pictures with the lowest mean IoU of 6 test images" in some
    assert f"{results['test_mean_iou']:.2%}" in some


@pytest.mark.slow
def test_settings_are_searched_on_folds(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "Devices", one_device)
    config = complete(flatten(Run(trained[1]).config()) | {"epochs": 2})
    options = Options(trials=2, folds=2, sampler="grid", pruner="none", at_once=2, resume=False, command=["test"])
    winner = search(config, Space(["optimizer.learning_rate=choice(1e-7,0.05)"]), tmp_path, options, Console())
    assert winner.point == {"optimizer.learning_rate": "0.05"}
    assert "scored by mean IoU on the validation images on" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_compiles_and_times_it(trained, monkeypatch):
    monkeypatch.setattr(ahead, "absent_devices", lambda name: AbsentDevices(jax.devices()[:1], 1 << 30))
    config = Run(trained[1]).config()
    report = ahead.examine(config, "gpu-h100", [8], lambda line: None)
    assert report["compiles"] is True
    monkeypatch.setattr(planned, "Devices", one_device)
    planned.add_plan(config, [8], costs := Report(), Console(mute=True))
    assert [cost.size for cost in costs.costs] == [8]
    assert any("data       masks:" in line for line in costs.plan)


def test_what_needs_features_or_labels_is_refused(trained, tmp_path, monkeypatch):
    source, folder, _ = trained
    data = ["--workdir", folder, "--data", f"masks:{source}"]
    for module, arguments, line in (
        (
            embedding,
            [*data, "--output", tmp_path / "f.npz"],
            "has a mask per image, but",
        ),
        (
            inspecting,
            [*data, "--output", tmp_path / "f.html"],
            "has a mask per image, but",
        ),
        (flax_to_resnet, ["--workdir", folder, "--output", tmp_path / "f.pth"], "exists in no library of torch"),
        (flax_to_onnx, ["--workdir", folder, "--output", tmp_path / "f.onnx"], "exists in no library of torch"),
    ):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(UserError, match=line) as caught:
            module.main()
        assert "\n" not in str(caught.value)


CHANGES = {
    "epochs": 3,
    "segmentation__loss": "both",
    "data__crop_scale": (0.4, 1.0),
    "data__keep_size": 20,
    "data__rotation": 10.0,
    "data__color_jitter": (0.2,),
    "data__size_schedule": (("8", 0.4),),
    "regularization__ema": 0.9,
    "regularization__class_weights": "balanced",
    "optimizer__accumulate": 2,
}


@pytest.mark.long
@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "head_then_full"])
def test_a_stopped_run_resumes_bit_identically(tmp_path, monkeypatch, trained, method):
    changes = CHANGES | {"finetune__method": method}
    changes |= {"finetune__head_epochs": 1, "finetune__batch_norm": "freeze"} if method != "full" else {}
    run_on(trained[0], tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(3))
        with pytest.raises(StoppedError):
            run_on(trained[0], tmp_path / "stopped", **changes)
    run_on(trained[0], tmp_path / "stopped", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped"))
    assert one | {"seconds": 0} == two | {"seconds": 0}
    if method != "full":
        started, _ = restored(tmp_path / "whole")
        assert not any(phase.on_features for phase in started.phases)
        assert [phase.head_only for phase in started.phases] == [True, False]


@pytest.mark.long
def test_eight_devices_train_as_one(tmp_path, monkeypatch, trained):
    changes = CHANGES | {"epochs": 2, "optimizer__accumulate": 1, "optimizer__learning_rate": 0.002}
    ones, eights = (tmp_path / name for name in ("one", "eight"))
    run_on(trained[0], ones, **changes)
    monkeypatch.setattr(train_module, "Devices", lambda: Devices(jax.devices()))
    run_on(trained[0], eights, **changes)
    one, eight = state_of(ones).arrays, state_of(eights).arrays
    assert one.keys() == eight.keys()
    for key, array in one.items():
        if key.startswith(("params", "batch_stats")):
            np.testing.assert_allclose(eight[key], array, rtol=1e-3, atol=1e-4, err_msg=key)
    for first, second in zip(rows_of(ones), rows_of(eights), strict=True):
        for name in ("train_loss", "val_loss", "val_pixel_accuracy"):
            assert second[name] == pytest.approx(first[name], rel=1e-3)


@pytest.mark.long
def test_a_run_starts_from_a_classifier_and_from_another_run(tmp_path, trained):
    source, folder, results = trained
    start = run_on(source, tmp_path / "classifier", task="classification", data__source="digits:0-4", epochs=1,
                   model__name="tiny", data__ignore_index=255, data__fit="crop", limit_train_examples=64,
                   limit_eval_examples=32)  # fmt: skip
    assert start["test_count"] == 32
    run_on(source, tmp_path / "pixels", init=str(tmp_path / "classifier"), epochs=1, optimizer__learning_rate=0.0)
    log = (tmp_path / "pixels" / "train.log").read_text()
    assert "with a new head (they learnt task=classification)" in log
    ours, theirs = state_of(tmp_path / "pixels").arrays, state_of(tmp_path / "classifier").arrays
    np.testing.assert_array_equal(ours["params/backbone.layer2.0.conv1.kernel"], theirs["params/layer2.0.conv1.kernel"])
    frozen = {"optimizer__learning_rate": 0.0, "epochs": 1, "finetune__batch_norm": "freeze"}
    again = run_on(source, tmp_path / "again", init=str(folder), data__allow_overlap=True, **frozen)
    assert "with its head" in (tmp_path / "again" / "train.log").read_text()
    assert again["test_count"] == results["test_count"]
    (source / "classes.txt").write_text("earth\nsquare\ndisc\n")
    try:
        run_on(source, tmp_path / "renamed", init=str(folder), data__allow_overlap=True, **frozen)
    finally:
        (source / "classes.txt").write_text("\n".join(NAMES))
    log = (tmp_path / "renamed" / "train.log").read_text()
    assert "head: 2 of 3 classes reused, new: earth; dropped: ground" in log
    ours, theirs = state_of(tmp_path / "renamed").arrays, Run(folder).restored("best").arrays
    np.testing.assert_array_equal(ours["params/classifier.0.kernel"], theirs["params/classifier.0.kernel"])
    last = "params/classifier.4.kernel"
    np.testing.assert_array_equal(ours[last][..., 1:], theirs[last][..., 1:])
    assert not np.array_equal(ours[last][..., 0], theirs[last][..., 0])


def test_other_networks_settings_and_tasks_are_refused(tmp_path, trained):
    source, folder, _ = trained

    def refused(**changes):
        with pytest.raises(UserError) as caught:
            run_on(source, tmp_path / "run", epochs=1, **changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "use linear_tiny, fcn_tiny, deeplabv3_tiny" in refused(model__name="tiny")
    digits = {"data__source": "digits:0-4", "data__ignore_index": 255, "data__fit": "crop", "task": "classification"}
    assert "has outputs of pixels, but task=classification needs those of whole images: use tiny" in refused(**digits)
    assert "needs one class per image; use --config.task=segmentation" in refused(
        task="classification", data__ignore_index=255
    )
    assert "config.data.ignore_index=200 cannot be used with task=classification" in refused(task="classification")
    for key, value in {
        "data__per_class": 3,
        "data__balance": "full",
        "data__auto_augment": "trivial",
        "data__random_erasing": 0.1,
        "regularization__mixup": 0.2,
        "regularization__cutmix": 0.2,
        "evaluation__flips": True,
        "evaluation__crops": 5,
        "multilabel__loss": "focal",
    }.items():
        assert "cannot be used with task=segmentation: " in refused(**{key: value})
    assert "config.data.augment=medium cannot be used" in refused(data__augment="medium")
    assert "init=" in refused(init=str(folder), model__name="fcn_resnet18")


def test_masks_without_any_class_are_refused(tmp_path):
    source = parts(tmp_path / "set", 3, 2, 2)
    for path in (source / "train" / "masks").iterdir():
        Image.fromarray(np.full((20, 24), VOID, np.uint8)).save(path)
    with pytest.raises(UserError, match="no pixel of the train masks has a class, all are ignored"):
        run_on(source, tmp_path / "run", epochs=1)


@pytest.mark.long
def test_changed_masks_stop_a_resumed_run(tmp_path, monkeypatch):
    source = parts(tmp_path / "set", 16, 4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "StopRequest", lambda: StopAt(2))
        with pytest.raises(StoppedError):
            run_on(source, tmp_path / "run", epochs=2)
    masks = source / "train" / "masks"
    (masks / "000.png").write_bytes((masks / "001.png").read_bytes())
    with pytest.raises(UserError, match="labels of 1 image changed since the run began: train/images/000.png"):
        run_on(source, tmp_path / "run", epochs=2, resume=True)
