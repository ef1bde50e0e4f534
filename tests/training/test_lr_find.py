"""Tests of the learning-rate range test: its suggestions, and that it changes nothing else."""

import json
import sys

import numpy as np
import pytest
from tiny_runs import TINY, one_device

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.errors import DivergedError, UserError, run_command
from sft_jax.main import main
from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training import lr_find
from sft_jax.training.experiment import Experiment
from sft_jax.training.lr_find import (
    LOWEST,
    STEPS,
    find_learning_rate,
    fitted_lines,
    has_diverged,
    judge,
    meaning,
    measured_losses,
    rate,
    running_average,
)
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.trainer import train

SETTINGS = TINY | {"epochs": 1, "optimizer.schedule": "cosine"}
RATES = np.array([float(rate(step)) for step in range(STEPS)])


def curve(kind, steepest, rates=RATES):
    """Returns losses of several shapes that fall most steeply at or near `steepest` and diverge at a larger rate."""
    ratio = rates / steepest
    if kind == "wide":
        return 0.1 + 2 / (1 + ratio**2) + (ratio / 100) ** 2 / 10
    if kind == "narrow":
        return 0.1 + 2 / (1 + ratio**2) + (ratio / 10) ** 4
    if kind == "steep":
        return 0.1 + 2 / (1 + ratio**4) + (ratio / 20) ** 3
    return 2.3 - 1.5 / (1 + ratio**-0.7) + (ratio / 1000) ** 2


def truly_steepest(kind, steepest):
    rates = np.geomspace(LOWEST, 10, 20001)
    losses = curve(kind, steepest, rates)
    return rates[np.gradient(losses)[: losses.argmin() + 1].argmin()]


def until_divergence(losses):
    for count in range(1, len(losses) + 1):
        if has_diverged(losses[:count]):
            return losses[:count]
    return losses


def test_the_learning_rate_grows_evenly_from_step_to_step():
    np.testing.assert_allclose(RATES[[0, -1]], [LOWEST, 10.0], rtol=1e-5)
    np.testing.assert_allclose(RATES[1:] / RATES[:-1], (10.0 / LOWEST) ** (1 / 99), rtol=1e-4)


def test_a_constant_is_its_own_average():
    np.testing.assert_allclose(running_average([2.5] * 20), 2.5)
    assert running_average([1.0, 0.0])[1] == pytest.approx(0.9 * 0.1 / 0.19)


def test_a_line_is_its_own_fit():
    """The smoothing does not lag behind, even at the ends."""
    line = 3 - 0.25 * np.arange(30)
    values, slopes = fitted_lines(line)
    np.testing.assert_allclose(values, line, atol=1e-12)
    np.testing.assert_allclose(slopes, -0.25)


@pytest.mark.parametrize("steepest", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize(
    ("kind", "noise"), [("wide", 0.0), ("wide", 0.1), ("narrow", 0.05), ("steep", 0.1), ("slow", 0.0)]
)
def test_the_suggestion_is_where_the_loss_falls_steepest(kind, noise, steepest):
    wanted = truly_steepest(kind, steepest)
    for seed in range(5):
        factors = 1 + noise * np.random.default_rng(seed).normal(size=STEPS)
        losses = until_divergence((curve(kind, steepest) * factors).tolist())
        result = judge(losses)
        assert wanted / 1.5 < result.suggested < wanted * 1.5
        assert result.suggested < result.lowest
        assert result.diverged is None or result.lowest < result.diverged


def test_the_suggestion_is_a_value_of_the_config_key():
    """The value of the key is multiplied by batch_size / reference_batch."""
    losses = until_divergence(curve("wide", 1e-3).tolist())
    plain, scaled = judge(losses), judge(losses, "finetune.head_learning_rate", 0.25)
    assert scaled.key == "finetune.head_learning_rate"
    for name in ("learning_rates", "suggested", "lowest", "diverged"):
        np.testing.assert_allclose(getattr(scaled, name), 4 * np.array(getattr(plain, name)))


def experiment(**changes):
    images = ArraySplit.of_images(np.zeros((64, 16, 16, 3), np.uint8), np.arange(64, dtype=np.int32) % 2)
    config = complete(TINY | {key.replace("__", "."): value for key, value in changes.items()})
    return Experiment(config, Dataset(images, images, images, ("a", "b")), one_device())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ("optimizer.learning_rate", 1.0)),
        ({"optimizer__reference_batch": 256}, ("optimizer.learning_rate", 0.25)),
        ({"finetune__method": "head"}, ("optimizer.learning_rate", 1.0)),
        (
            {"finetune__method": "head", "finetune__head_learning_rate": 0.1, "optimizer__reference_batch": 32},
            ("finetune.head_learning_rate", 2.0),
        ),
        (
            {"finetune__method": "head_then_full", "finetune__head_epochs": 1, "finetune__head_learning_rate": 0.1},
            ("optimizer.learning_rate", 1.0),
        ),
    ],
)
def test_the_suggested_key_is_that_of_the_last_phase(changes, wanted):
    assert meaning(experiment(**changes)) == wanted


@pytest.mark.long
def test_lp_ft_tests_the_full_phase_from_the_fitted_head(monkeypatch):
    monkeypatch.setattr(lr_find, "STEPS", 2)
    begun = []
    fresh_state = PhasePrograms.fresh_state

    def recorded(self, state, before):
        begun.append((self.phase, np.asarray(state.params["fc.kernel"])))
        return fresh_state(self, state, before)

    monkeypatch.setattr(PhasePrograms, "fresh_state", recorded)
    made = experiment(finetune__method="head_then_full", finetune__head_epochs=1)
    network = made.network
    params, batch_stats = (
        {key: np.full(leaf.shape, 0.5, np.float32) for key, leaf in part.items()}
        for part in (network.params, network.batch_stats)
    )
    assert len(list(measured_losses(made, params, batch_stats))) == 2
    ((phase, kernel),) = begun
    assert phase == made.phases[-1]
    assert not phase.on_features
    assert (kernel != 0.5).any()


@pytest.mark.parametrize(
    "losses",
    [
        np.full(STEPS, 2.3),
        2.3 + 0.1 * np.random.default_rng(0).normal(size=STEPS),
        1 + RATES / 1e-4 + 0.05 * np.random.default_rng(0).normal(size=STEPS),
        1 + np.arange(STEPS) / 10,
    ],
    ids=["constant", "flat", "rising late", "rising at once"],
)
def test_nothing_is_suggested_if_the_loss_does_not_fall(losses):
    result = judge(until_divergence(losses.tolist()))
    assert result.suggested is None
    assert lr_find._summary(result).startswith("no suggestion for optimizer.learning_rate: the loss does not fall")


def test_an_infinite_loss_ends_the_test_and_is_left_out_of_the_curve():
    losses = [*curve("wide", 1e-3).tolist()[:60], float("inf")]
    assert has_diverged(losses)
    result = judge(losses)
    assert len(result.losses) == 60
    assert result.diverged == pytest.approx(RATES[60])


def test_a_curve_that_never_diverges_has_no_divergence():
    assert judge(np.linspace(2, 1, STEPS).tolist()).diverged is None


def test_divergence_within_a_few_steps_is_an_error():
    with pytest.raises(
        DivergedError,
        match="the loss is already nan at optimizer.learning_rate=1.2e-07; no learning rate can be suggested",
    ):
        judge([1.0, float("nan")])


def stamps(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_no_run_is_started_or_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lr_find, "STEPS", 40)
    monkeypatch.setattr(lr_find, "Devices", one_device)
    run, config = Run(tmp_path / "run"), complete(SETTINGS)
    result = find_learning_rate(config, run, Console())
    assert {path.name for path in run.folder.iterdir()} == {"lr_find.json", "lr_find.png"}
    assert (run.folder / "lr_find.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((run.folder / "lr_find.json").read_text())
    assert written["suggested"] == result.suggested
    assert len(written["learning_rates"]) == len(written["losses"]) == len(written["smoothed"])
    assert LOWEST < result.suggested < 1.0
    assert result.smoothed.min() < 0.8 * result.smoothed[0], "the loss decreases during the test"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"learning rate: optimizer.learning_rate={result.suggested:.2g} suggested, where the loss")

    train(config, run, resume=False, console=Console(), command=["test"])  # a new run: the folder contains none
    before = stamps(run.folder)
    find_learning_rate(config, run, Console())
    after = stamps(run.folder)
    assert before.keys() == after.keys()
    assert {path.name for path in before if before[path][0] != after[path][0]} == {"lr_find.json", "lr_find.png"}
    assert json.loads((run.folder / "lr_find.json").read_text()) == written, "the same curve again"


def test_the_command_line_starts_the_range_test(tmp_path, monkeypatch, pytestconfig):
    asked = []
    monkeypatch.setattr(lr_find, "find_learning_rate", lambda config, run, console: asked.append(run.folder))
    recipe = f"{pytestconfig.rootpath}/configs/digits.py:source"
    monkeypatch.setattr(sys, "argv", ["main", "--config", recipe, "--lr-find", "--workdir", str(tmp_path / "run")])
    assert run_command(main) == 0
    assert asked == [tmp_path / "run"]
    assert not (tmp_path / "run").exists()


def test_an_optimizer_without_a_schedule_is_refused(tmp_path):
    config = complete(SETTINGS | {"optimizer.name": "schedule_free_sgd", "optimizer.schedule": "constant"})
    with pytest.raises(UserError, match="uses a constant learning rate"):
        find_learning_rate(config, Run(tmp_path), Console())
