"""Tests of schedules, optimizers by name and learning-rate multipliers."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from sft_jax.config import complete
from sft_jax.errors import UserError
from sft_jax.models import ARCHITECTURES
from sft_jax.training import optimizer as optimizer_module
from sft_jax.training.optimizer import eval_params, make_schedule, optimizer_names
from sft_jax.training.optimizer_arguments import OWN_KEYS

make_optimizer = functools.partial(optimizer_module.make_optimizer, architecture=ARCHITECTURES["resnet18"])
PARAMS = {
    "conv1.kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), jnp.float32),
    "bn1.scale": jnp.ones(5),
    "fc.kernel": jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)), jnp.float32),
    "fc.bias": jnp.zeros(2),
}
TARGET = jax.tree.map(lambda leaf: leaf[::-1] + 0.5, PARAMS)
# These need other learning rates or do not suit this toy problem; they are only checked to run with finite results.
OTHER_SCALE = {
    "fromage",
    "lars",
    "cocob",
    "dog",
    "dowg",
    "adadelta",
    "galore",
    "madgrad",
    "dadapt_adamw",
    "prodigy",
}


@pytest.fixture(autouse=True)
def optax_mixes_dtypes():
    """Some of optax's schedules and optimizers add booleans or integers to floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def optimizer_config(**changes):
    return complete({f"optimizer.{key}": value for key, value in changes.items()}).optimizer


def schedule(steps=100, *, steps_per_epoch=10, batch_size=1, **changes):
    made = make_schedule(
        optimizer_config(learning_rate=0.4, **changes), steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size
    )
    return [float(made(step)) for step in range(steps)]


def loss(params):
    return sum(((params[key] - TARGET[key]) ** 2).sum() for key in params) / 10


def descend(optimizer, steps, params=PARAMS):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def message(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", {0: 0.4, 50: 0.4, 99: 0.4}),
        ("cosine", {0: 0.4, 50: 0.2, 99: 0.4 * (1 + np.cos(np.pi * 0.99)) / 2}),
        ("linear", {0: 0.4, 50: 0.2, 99: 0.004}),
        ("step", {0: 0.4, 32: 0.4, 34: 0.04, 65: 0.04, 67: 0.004, 99: 0.004}),
        ("one_cycle", {0: 0.4 / 25, 30: 0.4}),
    ],
)
def test_schedules_have_the_expected_rates(name, rates):
    values = schedule(schedule=name)
    assert {step: values[step] for step in rates} == pytest.approx(rates, rel=1e-4)
    assert max(values) == pytest.approx(0.4)


def test_the_warmup_rises_to_the_peak():
    rates = schedule(schedule="cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(np.diff(rates[:21]), (0.4 - rates[0]) / 20, rtol=1e-3)
    assert 0 < rates[0] < 0.03, "the first step is not wasted"
    assert rates[20] == pytest.approx(0.4)
    assert rates[-1] < 0.001
    assert message(lambda: schedule(schedule="one_cycle", warmup_epochs=1.0)) == (
        "optimizer.schedule=one_cycle has a built-in warmup; set optimizer.warmup_epochs=0"
    )


def test_one_cycle_matches_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=101)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(schedule(schedule="one_cycle"), rates, rtol=0.05, atol=2e-3)


def test_the_rate_scales_with_the_batch_size_if_requested():
    assert schedule(batch_size=512, reference_batch=256)[0] == pytest.approx(0.8)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_matches_torch(nesterov):
    config = optimizer_config(learning_rate=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01, decay="all")
    ours, _ = descend(make_optimizer(config, 20), 20)
    theirs = {key: torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for key, leaf in PARAMS.items()}
    target = {key: torch.from_numpy(np.array(leaf)) for key, leaf in TARGET.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        (sum(((theirs[key] - target[key]) ** 2).sum() for key in theirs) / 10).backward()
        optimizer.step()
    for key, leaf in theirs.items():
        np.testing.assert_allclose(ours[key], leaf.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "nadamw", "lamb", "lion", "muon"])
def test_weight_decay_applies_to_kernels_unless_set_to_all(name):
    def after(**changes):
        optimizer = make_optimizer(optimizer_config(name=name, learning_rate=0.1, **changes), 10)
        still = jax.tree.map(jnp.ones_like, PARAMS)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, still), optimizer.init(still), still)
        return {key: float(jnp.abs(update).max()) for key, update in updates.items()}

    moved = after(weight_decay=0.1)
    assert moved["conv1.kernel"] > 0
    if name != "lamb":  # which scales each layer's step to the norm of its weights
        assert moved["conv1.kernel"] == pytest.approx(moved["fc.kernel"]) == pytest.approx(0.1 * 0.1), "the head too"
    assert moved["bn1.scale"] == moved["fc.bias"] == 0
    assert set(after(weight_decay=0.0).values()) == {0}
    assert min(after(weight_decay=0.1, decay="all").values()) > 0


@pytest.mark.parametrize("name", sorted(optimizer_names()))
def test_every_optax_optimizer_descends(name):
    optimizer = make_optimizer(optimizer_config(name=name, learning_rate=0.05), 60)
    params, state = descend(optimizer, 60)
    params = eval_params(optimizer_config(name=name), state, params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in params.values())
    if name not in OTHER_SCALE:
        assert loss(params) < 0.8 * loss(PARAMS)


def test_arguments_have_their_optax_names():
    config = optimizer_config(name="adamw", learning_rate=0.1, arguments=(("b1", 0.5), ("eps", 1e-3)))
    ours, _ = descend(make_optimizer(config, 5), 5)
    theirs, _ = descend(optax.adamw(0.1, b1=0.5, eps=1e-3, weight_decay=0.0), 5)
    for key in PARAMS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6)


def numeric(name):
    """Returns the numeric arguments of an optimizer with their defaults as floats, as from the command line."""
    parameters = inspect.signature(optimizer_names()[name]).parameters
    return tuple(
        (key, float(parameter.default))
        for key, parameter in parameters.items()
        if isinstance(parameter.default, bool | int | float) and key not in OWN_KEYS
    )


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(optimizer_names()))
def test_float_arguments_become_integers_where_needed(name):
    """Passing the defaults as floats changes nothing."""
    plain, given = (
        make_optimizer(optimizer_config(name=name, learning_rate=0.05, arguments=arguments), 3)
        for arguments in ((), numeric(name))
    )
    jax.tree.map(np.testing.assert_array_equal, descend(plain, 2)[0], descend(given, 2)[0])


@pytest.mark.parametrize("name", ["nadam", "nadamw"])
def test_optimizers_that_optax_derives_from_others_are_found(name):
    ours, _ = descend(make_optimizer(optimizer_config(name=name, learning_rate=0.1), 5), 5)
    theirs, _ = descend(optax.adam(0.1, nesterov=True), 5)
    for key in PARAMS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "argument", "value", "said"),
    [
        ("sgd", "dampening", 0.1, "dampening of sgd does not exist; it takes none"),
        ("sgd", "momentum", 0.5, "momentum of sgd has its own key, use --config.optimizer.momentum"),
        ("sgd", "accumulator_dtype", 16, "accumulator_dtype of sgd is not numeric; it takes none"),
        ("adamw", "beta", 0.9, "beta of adamw does not exist; it takes b1, b2, eps, eps_root, nesterov"),
        ("adamw", "weight_decay", 0.1, "weight_decay of adamw has its own key, use --config.optimizer.weight_decay"),
        ("adamw", "mask", 1, "mask of adamw has its own key, use --config.optimizer.decay"),
        ("adamw", "nesterov", 0.5, "nesterov=0.5 of adamw must be 1 (on) or 0 (off)"),
        ("muon", "ns_steps", 5.5, "ns_steps=5.5 of muon must be an integer"),
        (
            "muon",
            "adam_weight_decay",
            0.1,
            "adam_weight_decay of muon has its own key, use --config.optimizer.weight_decay",
        ),
        ("schedule_free_sgd", "warmup_steps", 0.1, "warmup_steps=0.1 of schedule_free_sgd must be an integer"),
        ("prodigy", "betas", 0.9, "betas of prodigy is not numeric; it takes beta3, eps, estim_lr0, estim_lr_coef, "),
    ],
)
def test_an_invalid_argument_is_a_one_line_error(name, argument, value, said):
    config = optimizer_config(name=name, arguments=((argument, value),))
    assert message(lambda: make_optimizer(config, 10)).startswith(f"config.optimizer.arguments: {said}")


def test_an_error_of_optax_is_a_one_line_error(monkeypatch):
    def fussy(learning_rate, level=1.0):
        raise ValueError("level must be odd\nand so on")

    monkeypatch.setattr(optax, "fussy", fussy, raising=False)
    config = optimizer_config(name="fussy", arguments=(("level", 2),))
    assert message(lambda: make_optimizer(config, 10)) == (
        "config.optimizer.arguments are rejected by fussy: level must be odd"
    )


def test_multipliers_scale_updates_not_momentum():
    config = optimizer_config(learning_rate=0.1, momentum=0.9)
    whole, _ = descend(make_optimizer(config, 3), 3)
    # The gradient of each parameter depends on itself alone here, so each has its own learning rate.
    ours, _ = descend(make_optimizer(config, 3, multipliers={"fc.kernel": 0.5}), 3)
    slow, _ = descend(make_optimizer(optimizer_config(learning_rate=0.05, momentum=0.9), 3), 3)
    np.testing.assert_allclose(ours["conv1.kernel"], whole["conv1.kernel"], rtol=1e-6)
    np.testing.assert_allclose(ours["fc.kernel"], slow["fc.kernel"], rtol=1e-5)


def test_gradients_are_clipped_by_their_norm_over_all_parameters():
    optimizer = make_optimizer(optimizer_config(learning_rate=1.0, momentum=0.0), 1, clip_norm=0.5)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda leaf: leaf / 1000, gradients)
    updates, _ = optimizer.update(small, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["fc.bias"], -small["fc.bias"], rtol=1e-6)


def test_schedule_free_evaluates_the_average():
    config = optimizer_config(name="schedule_free_sgd", learning_rate=0.5)
    params, state = descend(make_optimizer(config, 30), 30)
    averaged = eval_params(config, state, params)
    b1, z = (optax.tree_utils.tree_get(state, name) for name in ("b1", "z"))
    for key in PARAMS:
        np.testing.assert_array_equal(averaged[key], (params[key] - (1 - b1) * z[key]) / b1, err_msg=key)
    assert float(jnp.abs(averaged["fc.kernel"] - params["fc.kernel"]).max()) > 0


def test_settings_that_an_optimizer_does_not_support_are_refused():
    def made(**changes):
        multipliers = changes.pop("multipliers", None)
        return lambda: make_optimizer(optimizer_config(**changes), 10, multipliers=multipliers)

    assert message(made(name="adanw")) == "unknown config.optimizer.name='adanw'; did you mean 'adan'?"
    assert message(made(name="adam", weight_decay=0.1)) == (
        "optimizer.name=adam has no weight decay; set optimizer.weight_decay=0"
    )
    assert message(made(name="adafactor", weight_decay=0.1)) == (
        "optimizer.name=adafactor has weight_decay_rate instead, documented in optax "
        "(optimizer.arguments='weight_decay_rate=...'); set optimizer.weight_decay=0"
    )
    assert message(made(nesterov=True, momentum=0.0)) == (
        "optimizer.nesterov=True needs momentum; set optimizer.momentum, or optimizer.nesterov=False"
    )
    assert message(made(name="schedule_free_sgd", schedule="cosine")) == (
        "optimizer.name=schedule_free_sgd uses no schedule; "
        "set optimizer.schedule=constant and optimizer.warmup_epochs=0"
    )
    assert message(made(name="schedule_free_adamw", weight_decay=0.1)) == (
        "optimizer.name=schedule_free_adamw always decays all parameters; set optimizer.decay=all"
    )
    assert "needs the same learning rate for all parameters" in message(
        made(name="schedule_free_sgd", multipliers={"fc.bias": 2.0})
    )
