"""Checks `optimizer.arguments` against the signatures of optax's functions."""

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sft_jax.errors import UserError

# Arguments that have their own config keys.
OWN_KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "mask": "optimizer.decay",
    "weight_decay_mask": "optimizer.decay",
    "adam_weight_decay": "optimizer.weight_decay",
}
SGD_KEYS = {"momentum": "optimizer.momentum", "nesterov": "optimizer.nesterov"}


def checked_arguments(
    optimizer: str, make: Callable, given: Iterable[tuple[str, float]], keys: Mapping[str, str]
) -> dict[str, Any]:
    """Converts the arguments `given` to the types that `make` expects, e.g. 5.0 to 5 for an integer.

    Args:
      optimizer: name of the optimizer.
      make: optax's function for it.
      given: (name, number) pairs.
      keys: arguments that have their own config keys, with these keys.

    Raises:
      UserError: an argument is unknown, not numeric, set by another key, or has an invalid value.
    """
    accepted = inspect.signature(make).parameters
    settable = {
        name: kind
        for name, parameter in accepted.items()
        if name not in keys and (kind := _kind(parameter)) is not None
    }
    arguments: dict[str, Any] = {}
    for name, value in given:
        what = f"config.optimizer.arguments: {name}"
        if name in accepted.keys() & keys.keys():
            raise UserError(f"{what} of {optimizer} has its own key, use --config.{keys[name]}")
        if name not in settable:
            known = f"it takes {', '.join(settable)}" if settable else "it takes none"
            why = "is not numeric" if name in accepted else "does not exist"
            raise UserError(f"{what} of {optimizer} {why}; {known}")
        kind = settable[name]
        if kind is bool and value not in (0, 1):
            raise UserError(f"{what}={value:g} of {optimizer} must be 1 (on) or 0 (off)")
        if kind is int and value != int(value):
            raise UserError(f"{what}={value:g} of {optimizer} must be an integer")
        arguments[name] = kind(value)
    return arguments


def _kind(parameter: inspect.Parameter) -> Callable[[float], Any] | None:
    """Returns bool, int or float; None if the argument is not numeric."""
    if isinstance(parameter.default, bool | int | float):
        return type(parameter.default)
    if parameter.default not in (None, parameter.empty):
        return None
    options = {*typing.get_args(parameter.annotation)} or {parameter.annotation}
    # Annotations of array trees include both numbers and iterables; a single number is no use for those.
    if any(typing.get_origin(option) is collections.abc.Iterable for option in options):
        return None
    return float if float in options else int if int in options else None
