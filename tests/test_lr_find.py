"""The learning-rate range test: what it suggests of a curve, and that it leaves everything else alone."""

import json
import sys

import numpy as np
import pytest
from tiny_runs import TINY, one_device

from sft_jax import lr_find
from sft_jax.config import complete
from sft_jax.errors import DivergedError, UserError, run_command
from sft_jax.lr_find import LOWEST, STEPS, find_learning_rate, has_diverged, judge, rate, smoothed
from sft_jax.main import main
from sft_jax.report.console import Console
from sft_jax.runs import Run
from sft_jax.train import train

SETTINGS = TINY | {"epochs": 1, "optimizer.schedule": "cosine"}
RATES = np.array([float(rate(step)) for step in range(STEPS)])


def bowl(steepest=1e-3, lowest=1e-1):
    """Losses of a textbook curve: flat, falling around `steepest`, rising without end behind `lowest`."""
    fall = 1 / (1 + (RATES / steepest) ** 2)
    return (0.1 + 2 * fall + (RATES / lowest) ** 2 / 10).tolist()


def until_divergence(losses):
    for count in range(1, len(losses) + 1):
        if has_diverged(losses[:count]):
            return losses[:count]
    return losses


def test_the_learning_rate_grows_evenly_from_step_to_step():
    np.testing.assert_allclose(RATES[[0, -1]], [LOWEST, 10.0], rtol=1e-5)
    np.testing.assert_allclose(RATES[1:] / RATES[:-1], (10.0 / LOWEST) ** (1 / 99), rtol=1e-4)


def test_a_constant_is_its_own_average():
    np.testing.assert_allclose(smoothed([2.5] * 20), 2.5)
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.9 * 0.1 / 0.19)


def test_the_suggestion_is_where_the_loss_falls():
    losses = until_divergence(bowl())
    found = judge(losses)
    assert len(losses) < STEPS
    # The average lags behind by some steps, of a fifth each.
    assert 5e-4 < found.suggested < 8e-3
    assert found.suggested < found.lowest < found.diverged
    assert judge(until_divergence(bowl(steepest=1e-4, lowest=1e-2))).suggested < found.suggested / 5


def test_an_infinite_loss_ends_the_test_and_is_no_part_of_the_curve():
    losses = [*bowl()[:60], float("inf")]
    assert has_diverged(losses)
    found = judge(losses)
    assert len(found.losses) == 60
    assert found.diverged == pytest.approx(RATES[60])


def test_one_that_never_diverged_says_so():
    assert judge(np.linspace(2, 1, STEPS).tolist()).diverged is None


def test_nothing_can_be_said_of_a_few_steps():
    with pytest.raises(DivergedError, match="the loss is nan at a learning rate of"):
        judge([1.0, float("nan")])


def stamps(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_neither_begun_nor_touched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lr_find, "STEPS", 40)
    monkeypatch.setattr(lr_find, "Devices", one_device)
    run, config = Run(tmp_path / "run"), complete(SETTINGS)
    found = find_learning_rate(config, run, Console())
    assert {path.name for path in run.folder.iterdir()} == {"lr_find.json", "lr_find.png"}
    assert (run.folder / "lr_find.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((run.folder / "lr_find.json").read_text())
    assert written["suggested"] == found.suggested
    assert len(written["learning_rates"]) == len(written["losses"]) == len(written["smoothed"])
    assert LOWEST < found.suggested < 1.0
    assert found.smoothed.min() < 0.8 * found.smoothed[0], "it learns something on the way"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"learning rate: {found.suggested:.2g} suggested")

    train(config, run, resume=False, console=Console(), command=["test"])  # a fresh start: no run was there
    before = stamps(run.folder)
    find_learning_rate(config, run, Console())
    after = stamps(run.folder)
    assert before.keys() == after.keys()
    assert {path.name for path in before if before[path][0] != after[path][0]} == {"lr_find.json", "lr_find.png"}
    assert json.loads((run.folder / "lr_find.json").read_text()) == written, "the same curve again"


def test_from_the_command_line(tmp_path, monkeypatch, pytestconfig):
    asked = []
    monkeypatch.setattr(lr_find, "find_learning_rate", lambda config, run, console: asked.append(run.folder))
    recipe = f"{pytestconfig.rootpath}/configs/digits.py:source"
    monkeypatch.setattr(sys, "argv", ["main", "--config", recipe, "--lr-find", "--workdir", str(tmp_path / "run")])
    assert run_command(main) == 0
    assert asked == [tmp_path / "run"]
    assert not (tmp_path / "run").exists()


def test_an_optimizer_without_a_schedule_is_refused(tmp_path):
    config = complete(SETTINGS | {"optimizer.name": "schedule_free_sgd", "optimizer.schedule": "constant"})
    with pytest.raises(UserError, match="has one learning rate for all steps"):
        find_learning_rate(config, Run(tmp_path), Console())
