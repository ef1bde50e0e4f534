"""The search: its space and folds, trials side by side against runs of their own, and what it leaves and continues."""

import csv
import functools
import json
import runpy
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from tiny_config import TINY

from sft_jax import optim
from sft_jax.config import complete, flatten, load_config
from sft_jax.data import Dataset
from sft_jax.data.strata import folds
from sft_jax.data.types import ArraySplit
from sft_jax.errors import DivergedError, StoppedError, UserError, run_command
from sft_jax.models.resnet import SHAPES, BasicBlock, Shape
from sft_jax.parallel import Devices
from sft_jax.report.console import Console
from sft_jax.runs import Run
from sft_jax.search import session, study
from sft_jax.search.__main__ import main
from sft_jax.search.at_once import WORTHWHILE, AtOnce, choose
from sft_jax.search.folds import Folds
from sft_jax.search.report import best_config, recipe
from sft_jax.search.results import DIVERGED, DONE, PRUNED, Fold, Trial, best, ranked
from sft_jax.search.session import Options, search
from sft_jax.search.space import Space, parse
from sft_jax.search.together import Together
from sft_jax.traced import TRACEABLE, with_traced
from sft_jax.train import train
from sft_jax.weights import Weights, save_weights

RATES = "optimizer.learning_rate=log(0.002,0.05)"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", Shape(BasicBlock, (1, 1, 1, 1)))


def one_device():
    return Devices(jax.local_devices()[:1])


# --- the space


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
def test_dimensions(text, form, ends):
    dimension = parse(text)
    assert (dimension.form, dimension.ends()) == (form, ends)
    assert parse(str(dimension)) == dimension


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rat=log(1e-4,1e-1)", "the nearest one is 'optimizer.learning_rate'"),
        ("optimizer.learning_rate=lg(1e-4,1e-1)", "is none of KEY=log"),
        ("optimizer.learning_rate=log(0,1)", "wants 0 < LOW < HIGH"),
        ("optimizer.learning_rate=log(1,0.1)", "LOW < HIGH"),
        ("optimizer.learning_rate=log(1)", "wants two numbers"),
        ("optimizer.momentum=linear(0.5,1.5)", "must be at least 0 and less than 1"),
        ("epochs=int(1,2.5)", "wants two whole numbers"),
        ("epochs=linear(1,9)", "is not a whole number"),
        ("optimizer.name=choice(sgd)", "two choices or more"),
        ("precision=choice(float32,float16)", "must be one of float32, bfloat16"),
        ("epochs=choice(1,two)", "is not a whole number"),
    ],
)
def test_a_wrong_dimension_is_one_line(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as raised:
        Space([text])
    assert "\n" not in str(raised.value)


def test_a_key_twice_is_refused():
    with pytest.raises(UserError, match="is given twice"):
        Space([RATES, RATES])


def test_init_brings_its_network(tmp_path):
    files = [str(tmp_path / f"{arch}.safetensors") for arch in ("resnet18", "resnet34")]
    for file in files:
        arch = file.rpartition("/")[2].partition(".")[0]
        save_weights(tmp_path / f"{arch}.safetensors", Weights({}, arch, None, {}))
    space = Space([f"init=choice({','.join(files)},scratch)"])
    found = [space.config(complete(TINY), {"init": name}).model.name for name in (*files, "scratch")]
    assert found == ["resnet18", "resnet34", "tiny"]
    with pytest.raises(UserError, match="init names brings its own network"):
        Space(["init=choice(a,b)", "model.name=choice(resnet18,resnet34)"])


def test_a_grid_is_evenly_spaced():
    space = Space(["optimizer.learning_rate=log(1e-4,1e-1)", "optimizer.name=choice(sgd,adamw)"])
    points = space.grid(9)
    assert len(points) == 8
    np.testing.assert_allclose(sorted({point["optimizer.learning_rate"] for point in points}), [1e-4, 1e-3, 1e-2, 1e-1])
    with pytest.raises(UserError, match="use --trials 4 or more"):
        space.grid(3)


# --- folds


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_have_every_row_once_and_every_class_alike(count):
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


def noise(count, seed=0):
    """Images of five classes without equal neighbours, whose maxima do not depend on rounding."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 5
    classes = np.random.default_rng(9).integers(0, 256, (5, 16, 16, 3))
    images = 0.6 * classes[labels] + 0.4 * generator.integers(0, 256, (count, 16, 16, 3))
    return ArraySplit(images.astype(np.uint8), labels)


def test_cross_validation_reads_the_training_split_only():
    whole = noise(43)
    parts = Folds(Dataset(whole, Untouchable(), Untouchable(), tuple("01234")), 3, seed=0)
    seen = [parts[index] for index in range(3)]
    assert len({len(part.train) for part in seen}) == 1, "one size: one compiled program"

    def pictures(split):
        return {image.tobytes() for image in split.images}

    assert set.union(*(pictures(part.validation) for part in seen)) == pictures(whole)
    assert sum(len(part.validation) for part in seen) == 43
    for part in seen:
        assert not pictures(part.train) & pictures(part.validation)


# --- trials side by side


def curves(together, configs, dataset):
    """Losses and accuracy [epochs, trials, 3]."""
    return np.array([[row[:3] for row in rows] for rows in together.epochs(configs, dataset, lambda done: None)])


@pytest.mark.parametrize("batch_norm", ["freeze_statistics", "train"])
def test_eight_at_once_are_eight_runs(batch_norm):
    """Frozen statistics keep rounding from growing; statistics of batches let it, so that curves are short."""
    split = noise(192)
    dataset = Dataset(split, noise(61, seed=1), split, tuple("01234"))
    epochs, top = (4, 0.1) if batch_norm == "freeze_statistics" else (1, 0.01)
    values = TINY | {"finetune.batch_norm": batch_norm, "epochs": epochs, "optimizer.schedule": "cosine"}
    spread = {
        "optimizer.learning_rate": np.geomspace(1e-4, top, 8),
        "optimizer.momentum": np.linspace(0.0, 0.9, 8),
        "optimizer.weight_decay": np.geomspace(1e-4, 1e-2, 8),
        "regularization.label_smoothing": np.linspace(0.0, 0.2, 8),
    }
    assert set(spread) == set(TRACEABLE)
    configs = [complete(values | {key: float(row[index]) for key, row in spread.items()}) for index in range(8)]
    together = Together(configs[0], TRACEABLE, dataset, one_device())
    found = curves(together, configs, dataset)
    for index, config in enumerate(configs):
        wanted = curves(together, [config], dataset)[:, 0]
        np.testing.assert_allclose(found[:, index, :2], wanted[:, :2], atol=1e-4)
        # An image whose two highest logits are equal but for rounding may go either way.
        np.testing.assert_allclose(found[:, index, 2], wanted[:, 2], atol=1.01 / 61)
    assert np.ptp(found[-1, :, 0]) > 0.01, "the trials differ"
    assert len(together._compiled) == 2, "one program for all eight, and one for each by itself"


def test_phases_of_trials_at_once():
    """With what else a state has: moving averages, and anchors that all trials share."""
    split = noise(128)
    dataset = Dataset(split, noise(61, seed=1), split, tuple("01234"))
    phases = {"finetune.method": "head_then_full", "finetune.head_epochs": 1, "finetune.batch_norm": "recalibrate"}
    kept = {"regularization.l2_sp": 0.1, "regularization.ema": 0.9}
    configs = [complete(TINY | phases | kept | {"optimizer.learning_rate": rate}) for rate in (0.001, 0.01)]
    together = Together(configs[0], ["optimizer.learning_rate"], dataset, one_device())
    found = curves(together, configs, dataset)
    assert len(found) == 2
    for index, config in enumerate(configs):
        wanted = curves(together, [config], dataset)[:, 0]
        np.testing.assert_allclose(found[:, index, :2], wanted[:, :2], atol=1e-4, rtol=1e-4)  # the second one diverges
    assert (np.ptp(found[-1, :, :2], axis=0) > 1e-3).all()


def test_the_settings_of_every_optimizer_can_be_arguments():
    params = {"conv.kernel": jnp.ones((3, 3, 2, 2)), "fc.bias": jnp.ones(2)}
    keys = ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.momentum")

    def updates(values, config):
        config = with_traced(config, values) if values else config
        optimizer = optim.make_optimizer(config.optimizer, 5)
        return optimizer.update(params, optimizer.init(params), params)[0]

    for name in ("sgd", "adamw", "muon", "lamb", "lion", "schedule_free_adamw"):
        config = complete({"optimizer.name": name, "optimizer.weight_decay": 0.1, "optimizer.decay": "all"})
        values = {key: jnp.float32(flatten(config)[key]) for key in keys}
        with jax.numpy_dtype_promotion("standard"):  # optax's own schedules
            found, wanted = jax.jit(functools.partial(updates, config=config))(values), updates(None, config)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)


def test_what_is_faster_is_chosen():
    split = noise(320)
    dataset = Dataset(split, split, split, tuple("01234"))
    config = complete(TINY)
    together = Together(config, ["optimizer.learning_rate"], dataset, one_device())
    found = choose(together, [config] * 2, dataset, asked=None)
    assert found.count == (2 if found.together_s <= WORTHWHILE * 2 * found.alone_s else 1)
    assert f"{1e3 * found.alone_s:.3g} ms alone on 1 x cpu" in found.reason
    assert choose(together, [config] * 2, dataset, asked=2).count == 2
    # 40 steps of each of four trials took 50 ms in place of 100 ms, and 22 s went elsewhere.
    assert AtOnce(4, "", 4, alone_s=0.1, together_s=0.2).one_by_one(30.0, 160) == pytest.approx(38.0)
    assert AtOnce(1, "", 4, alone_s=0.1, together_s=0.5).one_by_one(30.0, 160) is None


# --- a whole search


def run(folder, *texts, changes=None, devices=one_device, **options):
    defaults = {"trials": 3, "folds": 1, "sampler": "tpe", "pruner": "none", "at_once": 1, "resume": False}
    config = complete(TINY | (changes or {}))
    chosen = Options(**(defaults | options), command=["test"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "Devices", devices)
        return search(config, Space(texts or [RATES]), folder, chosen, Console())


def whole_of(folder):
    """search.json without what depends on the clock; that cuts the sums of evaluation, whose last bits are left out."""
    found = json.loads((folder / "search.json").read_text(), parse_float=lambda text: round(float(text), 5))
    for trial in found["trials"]:
        for timed in (trial, *trial["folds"]):
            del timed["seconds"]
    return found["trials"]


@pytest.fixture(scope="module")
def cross_validated(tmp_path_factory):
    """A search by cross-validation that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", Shape(BasicBlock, (1, 1, 1, 1)))
        folder = tmp_path_factory.mktemp("searches") / "whole"
        return folder, run(folder, folds=2)


def test_best_py_is_a_recipe_that_gives_the_reported_score(tmp_path, capsys):
    folder = tmp_path / "search"
    winner = run(folder, changes={"optimizer.weight_decay": 5e-4}, devices=Devices)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"run it     python -m sft_jax.main --config {folder}/best.py --workdir {folder}/best"
    config = load_config(str(folder / "best.py"))
    assert config.optimizer.learning_rate == winner.point["optimizer.learning_rate"]
    assert config.epochs == winner.epochs
    results = train(config, Run(folder / "best"), resume=False, console=Console(), command=["test"])
    assert results["best_val_accuracy"] == winner.mean
    rows = Run(folder / "best").rows()
    assert [row["val_accuracy"] for row in rows] == winner.folds[0].val_accuracy[: winner.epochs]
    assert [row["train_loss"] for row in rows] == winner.folds[0].train_loss[: winner.epochs]


def test_what_cross_validation_leaves(cross_validated, capsys):
    folder, winner = cross_validated
    whole = json.loads((folder / "search.json").read_text())
    first = whole["trials"][0]
    assert whole["best_trial"] == first["trial"] == winner.number
    assert [trial["rank"] for trial in whole["trials"]] == [1, 2, 3]
    accuracies = np.array([fold["val_accuracy"] for fold in first["folds"]])
    assert accuracies.shape == (2, 2)
    assert first["epochs"] == accuracies.mean(0).argmax() + 1
    assert first["per_fold"] == accuracies[:, first["epochs"] - 1].tolist()
    assert first["mean"] == pytest.approx(np.mean(first["per_fold"]))
    assert first["standard_deviation"] == pytest.approx(np.std(first["per_fold"], ddof=1))
    with (folder / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == [trial["mean"] for trial in whole["trials"]]
    assert [float(row["fold_2"]) for row in rows] == [trial["per_fold"][1] for trial in whole["trials"]]
    for picture in ("dimensions.png", "history.png", "curves.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    log = (folder / "search.log").read_text()
    assert "validation accuracy on 2 folds of the 320 training images" in log
    assert "rank  trial  learning_rate" in log
    assert f"{winner.mean:.2%} +- {winner.deviation:.2%} over 2 folds" in (folder / "best.py").read_text()


class StopAt:
    """In place of `StopRequest`: a SIGTERM that comes when it is asked for the `calls`-th time."""

    def __init__(self, calls):
        self._left = calls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def signal(self):
        self._left -= 1
        return signal.SIGTERM if self._left <= 0 else None


def test_stopped_and_resumed_is_never_stopped(cross_validated, tmp_path, monkeypatch):
    """As a kill leaves it, too: a stop saves nothing more."""
    folder = tmp_path / "search"
    trained = []
    epochs = Together.epochs
    monkeypatch.setattr(
        Together, "epochs", lambda *arguments: trained.append(arguments[1]) or epochs(*arguments), raising=True
    )
    # Four folds with two epochs of at least one piece each: in the second trial.
    monkeypatch.setattr("sft_jax.search.together.Pace", OneEpoch)
    monkeypatch.setattr(session, "StopRequest", lambda: StopAt(7))
    with pytest.raises(StoppedError, match="stopped by SIGTERM; finished trials and folds are kept, add --resume"):
        run(folder, folds=2)
    assert len(trained) == 4
    monkeypatch.setattr(session, "StopRequest", lambda: StopAt(1000))
    run(folder, folds=2, resume=True)
    assert len(trained) == 4 + 3, "the second trial's first fold is not trained again"
    assert whole_of(folder) == whole_of(cross_validated[0])


class OneEpoch:
    """In place of `Pace`: a call is an epoch."""

    steps = 5

    def timing(self, steps):
        return pytest.MonkeyPatch.context()  # a context that does nothing here


def test_a_used_folder_is_refused(cross_validated, tmp_path):
    folder, _ = cross_validated
    with pytest.raises(UserError, match="already holds a search; add --resume to continue it, or choose a fresh"):
        run(folder, folds=2)
    with pytest.raises(UserError, match=r"changed: folds \(was 2, now 1\)"):
        run(folder, resume=True)
    with pytest.raises(UserError, match="changed: space"):
        run(folder, "optimizer.learning_rate=log(0.002,0.06)", folds=2, resume=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run; choose a fresh --workdir"):
        run(tmp_path)


def test_a_resumed_search_may_have_more_trials(cross_validated, tmp_path):
    before = whole_of(cross_validated[0])
    folder = tmp_path / "search"
    run(folder, folds=2, trials=2)
    run(folder, folds=2, trials=3, resume=True)
    assert whole_of(folder) == before


def test_several_at_once_say_what_it_took(tmp_path, capsys):
    run(tmp_path / "search", sampler="grid", trials=2, at_once=2)
    printed = capsys.readouterr().out
    assert "at once    2 trials: as --at-once says; a step of a trial takes" in printed
    assert "2 at once; one after the other at least" in printed
    found = whole_of(tmp_path / "search")
    assert sorted(trial["optimizer.learning_rate"] for trial in found) == pytest.approx([0.002, 0.05])


def test_a_diverged_trial_is_the_worst_and_ends_nothing(tmp_path):
    folder = tmp_path / "search"
    winner = run(folder, "optimizer.learning_rate=choice(1e30,0.02)", sampler="grid", trials=2)
    assert winner.point == {"optimizer.learning_rate": "0.02"}
    last = json.loads((folder / "search.json").read_text())["trials"][-1]
    assert (last["state"], last["mean"]) == (DIVERGED, None)


def test_pruned_trials(tmp_path, monkeypatch):
    class Merciless(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 1

    monkeypatch.setattr(study, "_pruner", lambda name: Merciless())
    folder = tmp_path / "search"
    with pytest.raises(DivergedError, match="no trial came to a score"):
        run(folder, trials=1, pruner="median")
    (found,) = json.loads((folder / "search.json").read_text())["trials"]
    assert found["state"] == PRUNED
    assert len(found["folds"][0]["val_accuracy"]) == 1


@pytest.mark.parametrize("name", study.PRUNERS)
def test_pruners_of_optuna(name):
    """Values that fall behind a row of good trials are pruned, but for "none"."""
    found = optuna.create_study(direction="maximize", pruner=study._pruner(name))

    def objective(trial):
        for step in range(1, 10):
            trial.report(0.1 if trial.number == 9 else 0.9, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 0.9

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found.optimize(objective, n_trials=10)
    assert (found.trials[9].state == optuna.trial.TrialState.PRUNED) == (name != "none")


# --- results and recipes


def trial(number, *curves, state=DONE):
    return Trial(number, {"epochs": 3}, tuple(Fold(curve, [1.0] * len(curve), state=state) for curve in curves))


def test_the_best_epoch_is_that_of_the_mean_curve():
    found = trial(1, [0.5, 0.9, 0.6], [0.5, 0.4, 0.8])
    assert found.epochs == 3
    assert found.per_fold == [0.6, 0.8]
    assert found.mean == pytest.approx(0.7)
    assert found.deviation == pytest.approx(0.2 / np.sqrt(2))
    assert trial(1, [0.5, 0.9]).deviation is None


def test_order_of_merit():
    found = [trial(1, [0.5]), trial(2, [], state=DIVERGED), trial(3, [0.9], state=PRUNED), trial(4, [0.7])]
    assert [one.number for one in ranked(found)] == [4, 1, 3, 2]
    assert best(found).number == 4
    assert best(found[1:3]) is None


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 2),
        ({"optimizer.schedule": "cosine"}, 3),
        ({"optimizer.warmup_epochs": 2.0}, 3),
        ({"data.size_schedule": (("16", 0.5),)}, 3),
        ({"finetune.method": "head_then_full", "finetune.head_epochs": 2}, 3),
    ],
)
def test_fewer_epochs_where_they_are_the_beginning_of_all(changes, epochs):
    config, cut = best_config(complete({"epochs": 3} | changes), trial(1, [0.1, 0.3, 0.2]))
    assert (config.epochs, cut) == (epochs, epochs == 2)


def test_a_recipe_has_every_setting(tmp_path):
    values = {
        "epochs": 7,
        "init": 'a "quoted" \\ path',
        "data.per_class": 3,
        "data.flip": False,
        "data.mean": (0.1, 0.2, 0.3),
        "data.size_schedule": (("16", 0.5),),
        "finetune.freeze": ("conv1.*", r"bn\d.*"),
        "optimizer.learning_rate": 1e-5,
    }
    path = tmp_path / "best.py"
    path.write_text(recipe(complete(values), {"epochs": 7}, summary='So """well""" \\ done.', command="run it"))
    assert flatten(load_config(str(path))) == flatten(complete(values))
    assert 'So """well""" \\ done.' in runpy.run_path(str(path))["__doc__"]
    assert "    config.epochs = 7  # chosen\n" in path.read_text()


# --- the command line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--space", "epoch=int(1,2)"], "unknown config key 'epoch'; the nearest one is 'epochs'"),
        (["--space", "batch_size=choice(64,100)"], "batch_size=100 does not divide evenly over 8 devices"),
        (["--space", "optimizer.name=choice(sgd,adamv)"], "the nearest one is 'adam"),
        (["--space", RATES, "--folds", "500"], "a class has only"),
        (["--space", "epochs=int(1,9)", "--sampler", "grid", "--trials", "4"], "use --trials 9 or more"),
    ],
    ids=["key", "batch", "optimizer", "folds", "grid"],
)
def test_wrong_input_is_one_line_and_2(flags, message, tmp_path, pytestconfig, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_file = f"{pytestconfig.rootpath}/configs/digits.py:source"
    monkeypatch.setattr(sys, "argv", ["search", "--config", recipe_file, *flags])
    assert run_command(main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("flags", [[], ["--space", RATES, "--trials", "0"], ["--space", RATES, "--pruner", "x"]])
def test_wrong_flags_exit_with_2(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", "--config", "a.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
