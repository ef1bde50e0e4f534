"""`optimizer.arguments`: numbers for arguments of optax's functions, checked against their signatures."""

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sft_jax.errors import UserError

# Arguments of any optimizer that have keys of their own.
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
    """The arguments `given` as `make`, optax's function for `optimizer`, wants them: 5.0 as 5 where it counts.

    Args:
      optimizer: its name.
      make: see above.
      given: (name, number) pairs.
      keys: config keys of the arguments that are set by these.

    Raises:
      UserError: an argument is unknown, no number, set elsewhere, or must be another number.
    """
    accepted = inspect.signature(make).parameters
    settable = {
        name: kind
        for name, parameter in accepted.items()
        if name not in keys and (kind := _kind(parameter)) is not None
    }
    found: dict[str, Any] = {}
    for name, value in given:
        what = f"config.optimizer.arguments: {name}"
        if name in accepted.keys() & keys.keys():
            raise UserError(f"{what} of {optimizer} has a key of its own, {keys[name]}")
        if name not in settable:
            known = f"it takes {', '.join(settable)}" if settable else "it takes none"
            why = "is no number" if name in accepted else "is none of its arguments"
            raise UserError(f"{what} of {optimizer} {why}; {known}")
        kind = settable[name]
        if kind is bool and value not in (0, 1):
            raise UserError(f"{what}={value:g} of {optimizer} must be 1 (on) or 0 (off)")
        if kind is int and value != int(value):
            raise UserError(f"{what}={value:g} of {optimizer} must be a whole number")
        found[name] = kind(value)
    return found


def _kind(parameter: inspect.Parameter) -> Callable[[float], Any] | None:
    """bool, int or float; None of an argument that is no number."""
    if isinstance(parameter.default, bool | int | float):
        return type(parameter.default)
    if parameter.default not in (None, parameter.empty):
        return None
    options = {*typing.get_args(parameter.annotation)} or {parameter.annotation}
    # Trees of arrays are numbers or iterables of them; of those, a number alone is no use.
    if any(typing.get_origin(option) is collections.abc.Iterable for option in options):
        return None
    return float if float in options else int if int in options else None
