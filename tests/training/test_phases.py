"""Tests of what continues from one phase to the next: momentum, step counts, averages."""

import jax
import numpy as np
import pytest
import torch
from tiny_runs import TINY, one_device

from sft_jax.config import complete
from sft_jax.data import Dataset
from sft_jax.data.dataset import ArraySplit
from sft_jax.data.loader import StepsPerCall
from sft_jax.models import ARCHITECTURES
from sft_jax.training.experiment import Experiment
from sft_jax.training.optimizer import eval_params
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.staged_optimizer import by_beginning, make_staged_optimizer
from sft_jax.training.state import to_arrays

STEPS = 2  # per epoch
RESNET = ARCHITECTURES["resnet18"]


def images(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (STEPS * 8, 16, 16, 3), np.uint8)
    return ArraySplit.of_images(pixels, np.arange(STEPS * 8, dtype=np.int32) % 2)


def experiment(validation=None, scored_on_validation=False, **changes):
    split = images()
    values = TINY | {"batch_size": 8, "limit_train_examples": None, "limit_eval_examples": None}
    config = complete(values | {key.replace("__", "."): value for key, value in changes.items()})
    dataset = Dataset(split, validation or split, split, ("a", "b"))
    return Experiment(config, dataset, one_device(), scored_on_validation=scored_on_validation)


def weights(network, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(
        {key: np.asarray(0.5 + 0.1 * generator.normal(size=leaf.shape), np.float32) for key, leaf in part.items()}
        for part in (network.params, network.batch_stats)
    )


def at_the_switch(experiment, index=1):
    """Returns the states before and after the switch to the phase with this index, and its programs."""
    before = PhasePrograms(experiment, experiment.phases[index - 1])
    state = before.first_state(*weights(experiment.network))
    # Imitates training: no kept value equals its initial one.
    state = state.replace(
        step=np.int32(experiment.phases[index].first * STEPS),
        opt_state=jax.tree.map(lambda leaf: np.full(leaf.shape, 7, leaf.dtype), state.opt_state),
        ema=jax.tree.map(lambda leaf: np.full(leaf.shape, 3, leaf.dtype), state.ema),
    )
    after = PhasePrograms(experiment, experiment.phases[index])
    return state, after.next_state(state, before), after


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune__method": "gradual", "epochs": 4},
        {"finetune__method": "head_then_full", "finetune__head_epochs": 1},
    ],
    ids=["gradual", "head_then_full"],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_momentum_continues_and_new_parameters_start_fresh(changes, name):
    made = experiment(optimizer__name=name, regularization__clip_norm=1.0, **changes)
    _, after, programs = at_the_switch(made)
    old, new = made.phases[0].trained, made.phases[1].trained - made.phases[0].trained
    leaves = {key: np.asarray(leaf) for key, leaf in to_arrays(after.opt_state).items()}
    moments = {key: leaf for key, leaf in leaves.items() if key.rpartition("/")[2] in old | new}
    assert {key.rpartition("/")[2] for key in moments} == old | new
    for key, leaf in moments.items():
        assert (leaf == (7 if key.rpartition("/")[2] in old else 0)).all(), key
    counts = {key.partition("/")[0]: leaf.tolist() for key, leaf in leaves.items() if key.endswith("count")}
    assert counts == {"0": 7, str(STEPS): 0}, "each stage counts its own steps"
    assert set(programs.since.values()) == {0, STEPS}


def test_staged_adam_matches_torch():
    """The second parameter is unfrozen after 3 steps; torch's Adam counts steps per parameter."""
    config = complete({"optimizer.name": "adamw", "optimizer.weight_decay": 0.01, "optimizer.decay": "all"}).optimizer
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(8, 2, 4)).astype(np.float32)
    params = {name: np.ones(4, np.float32) for name in "ab"}
    kept = {}
    for first, stop, since in ((0, 3, {"a": 0}), (3, 8, {"a": 0, "b": 3})):
        optimizer = make_staged_optimizer(
            config,
            lambda step: 0.1 / (1 + step),
            since,
            architecture=RESNET,
            clip_norm=None,
            multipliers=dict.fromkeys(since, 1.0),
        )
        fresh = optimizer.init({name: params[name] for name in since})
        kept = by_beginning(fresh, since) | kept
        state = kept if len(kept) > 1 else kept["0"]
        for step in range(first, stop):
            own = {name: params[name] for name in since}
            slopes = {name: gradients[step, "ab".index(name)] for name in since}
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes in its bias correction
                updates, state = optimizer.update(slopes, state, own)
            params |= {name: params[name] + updates[name] for name in since}
        kept = by_beginning(state, since)

    theirs = [torch.nn.Parameter(torch.ones(4)) for _ in "ab"]
    adam = torch.optim.AdamW(theirs[:1], lr=0.1, weight_decay=0.01)
    for step in range(8):
        if step == 3:
            adam.add_param_group({"params": theirs[1:]})
        for group in adam.param_groups:
            group["lr"] = 0.1 / (1 + step)
        for index, parameter in enumerate(theirs):
            parameter.grad = torch.from_numpy(gradients[step, index]) if index == 0 or step >= 3 else None
        adam.step()
    for index, name in enumerate("ab"):
        np.testing.assert_allclose(params[name], theirs[index].detach(), rtol=1e-5)


def test_gradients_are_clipped_by_their_norm_over_all_stages():
    config = complete({"optimizer.momentum": 0.0}).optimizer
    since = {"a": 0, "b": 3}
    optimizer = make_staged_optimizer(
        config, lambda step: 1.0, since, architecture=RESNET, clip_norm=0.5, multipliers=dict.fromkeys(since, 1.0)
    )
    ones = {name: np.ones(2, np.float32) for name in since}
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    for update in updates.values():
        np.testing.assert_allclose(update, -0.25 * np.ones(2), rtol=1e-6)


def test_schedule_free_averages_of_all_stages_are_evaluated():
    config = complete({"optimizer.name": "schedule_free_sgd"}).optimizer
    since = {"a": 0, "b": 3}
    optimizer = make_staged_optimizer(
        config, lambda step: 0.1, since, architecture=RESNET, clip_norm=None, multipliers=dict.fromkeys(since, 1.0)
    )
    params = {name: np.full(2, value, np.float32) for name, value in (("a", 1), ("b", 2), ("c", 3))}
    state = optimizer.init({name: params[name] for name in since})
    moved = {name: leaf + 1 for name, leaf in params.items()}
    averages = eval_params(config, state, moved)
    for name, z in (("a", 1), ("b", 2)):
        wanted = (moved[name] - (1 - np.float32(0.9)) * np.float32(z)) / np.float32(0.9)
        np.testing.assert_array_equal(averages[name], wanted, err_msg=name)
    np.testing.assert_array_equal(averages["c"], moved["c"])


def test_averages_continue_in_the_next_phase():
    made = experiment(finetune__method="gradual", regularization__ema=0.9, epochs=4)
    state, after, _ = at_the_switch(made)
    for name, average in state.ema.items():
        np.testing.assert_array_equal(after.ema[name], average, err_msg=name)


def test_the_warmup_of_the_averages_starts_with_them():
    """After training a head on features, the averages start with the next phase."""
    made = experiment(finetune__method="head_then_full", finetune__head_epochs=1, regularization__ema=0.99)
    state, after, programs = at_the_switch(made)
    assert not state.ema
    np.testing.assert_array_equal(after.ema["fc.kernel"], after.params["fc.kernel"])
    assert programs.settings().ema_start == STEPS == int(after.step)
    begun = {name: np.array(leaf) for name, leaf in after.ema.items()}
    order = made.order(1)[:1]
    (call,) = programs.train_loader.calls(order, steps_per_call=StepsPerCall())
    new, _ = programs.train_steps(after, call.chunk, made.key)
    for name in ("conv1.kernel", "fc.kernel"):
        # The first rate is 1 / 10.
        np.testing.assert_allclose(new.ema[name], 0.1 * begun[name] + 0.9 * new.params[name], rtol=1e-5, atol=1e-7)


def test_statistics_are_recalibrated_at_each_size():
    made = experiment(data__size_schedule=(("8", 0.5),), finetune__batch_norm="recalibrate", regularization__ema=0.9)
    assert [phase.size for phase in made.phases] == [8, 16]
    before = PhasePrograms(made, made.phases[0])
    small = before.first_state(*weights(made.network))
    kept = np.array(small.batch_stats["bn1.var"])
    after = PhasePrograms(made, made.phases[1])
    large = after.next_state(small, before)
    wanted = after.measured(large.params, large.batch_stats)
    for name, statistics in wanted.items():
        np.testing.assert_allclose(large.batch_stats[name], statistics, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(large.ema[name], large.batch_stats[name], err_msg=name)
    assert (np.asarray(large.batch_stats["bn1.var"]) != kept).any()


def test_statistics_without_recalibration_are_kept_at_another_size():
    made = experiment(data__size_schedule=(("8", 0.5),), finetune__batch_norm="freeze_statistics")
    before = PhasePrograms(made, made.phases[0])
    small = before.first_state(*weights(made.network))
    assert PhasePrograms(made, made.phases[1]).next_state(small, before) is small


@pytest.mark.parametrize("scored", [False, True])
def test_the_fold_that_scores_a_head_does_not_select_it(scored):
    """The held-out labels make no difference in cross-validation; in a run they select the solution."""
    heads = []
    for shift in (0, 1):
        held_out = images(seed=1)
        held_out = ArraySplit.of_images(
            held_out.images, (held_out.labels + shift * (np.arange(16) < 5)).astype(np.int32) % 2
        )
        made = experiment(validation=held_out, scored_on_validation=scored, finetune__method="head")
        state = PhasePrograms(made, made.phases[0]).first_state(*weights(made.network))
        heads.append(np.array(state.params["fc.kernel"]))
    assert (heads[0] == heads[1]).all() == scored


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        (
            {"finetune__method": "head_then_full", "finetune__head_epochs": 4},
            {0: 0.5, 4: 0.25, 7: 0.5 * (1 + np.cos(np.pi * 7 / 8)) / 2, 8: 0.02},
        ),
        ({"finetune__method": "gradual", "finetune__unfreeze_epochs": 4}, {0: 0.5, 4: 0.5 * 0.75, 8: 0.02 * 0.25}),
    ],
    ids=["head_then_full", "gradual"],
)
def test_the_heads_learning_rate_follows_the_schedule(changes, rates):
    made = experiment(epochs=6, optimizer__schedule="cosine", finetune__head_learning_rate=0.5, **changes)
    phases = {step: phase for phase in made.phases for step in range(phase.first * STEPS, phase.stop * STEPS)}
    learning_rates = {step: PhasePrograms(made, phases[step]).learning_rate(step) for step in rates}
    assert learning_rates == pytest.approx(rates, rel=1e-4)


def test_the_heads_learning_rate_warms_up_and_grows_with_the_batch():
    made = experiment(
        epochs=6,
        finetune__method="head",
        finetune__head_learning_rate=0.5,
        optimizer__warmup_epochs=2.0,
        optimizer__reference_batch=4,
    )
    programs = PhasePrograms(made, made.phases[0])
    assert [programs.learning_rate(step) for step in (0, 4, 9)] == pytest.approx([1 / 5, 1.0, 1.0])
