"""A config key: its type, how it is parsed, and the checks that several keys share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


class Patterns(tuple):
    """Regular expressions, separated by semicolons on the command line."""


class Pairs(tuple):
    """(string, number) pairs, written "NAME=NUMBER;NAME=NUMBER" on the command line."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: default, type, description, and the check its values must pass, which `rule` puts into words."""

    default: Any
    kind: type
    doc: str
    check: Callable[[Any], bool] = lambda value: True
    rule: str = ""
    optional: bool = False

    def parse(self, text: str) -> Any:
        """Parses a value given on the command line. Raises ValueError or KeyError."""
        if self.optional and text.lower() == "none":
            return None
        if self.kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if self.kind is tuple:
            return tuple(float(part) for part in text.strip("()[] ").split(",") if part.strip())
        if self.kind is Patterns:
            return Patterns(part.strip() for part in text.split(";") if part.strip())
        if self.kind is Pairs:
            pairs = (part.rpartition("=") for part in text.split(";") if part.strip())
            return Pairs((left.strip(), float(right)) for left, _, right in pairs)
        return self.kind(text)

    def coerce(self, value: Any) -> Any:
        """Converts `value` to the key's type if that is lossless, e.g. 1 to 1.0. Raises TypeError or ValueError."""
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is tuple and isinstance(value, list | tuple):
            return tuple(float(part) for part in value)
        if self.kind is Patterns and isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return Patterns(value)
        if self.kind is Pairs and isinstance(value, list | tuple):
            return Pairs((str(left), float(right)) for left, right in value)
        if type(value) is not self.kind:
            raise ValueError(value)
        return value


def whole(text: str) -> bool:
    """Returns whether a text is an integer greater than 0."""
    return text.isdecimal() and int(text) > 0


def one_of(*names: str) -> dict[str, Any]:
    """Returns the check that a value is one of `names`, and its rule."""
    return {"check": lambda value: value in names, "rule": f"one of {', '.join(names)}"}


POSITIVE: dict[str, Any] = {"check": lambda value: value is None or 0 < value < math.inf, "rule": "greater than 0"}
NOT_NEGATIVE: dict[str, Any] = {"check": lambda value: 0 <= value < math.inf, "rule": "0 or more"}
EXPONENT: dict[str, Any] = {
    # The gradient of other powers is infinite at 0.
    "check": lambda value: value == 0 or 1 <= value < math.inf,
    "rule": "0, or 1 or more",
}
FRACTION: dict[str, Any] = {"check": lambda value: 0 <= value < 1, "rule": "at least 0 and less than 1"}
PROBABILITY: dict[str, Any] = {"check": lambda value: 0 <= value <= 1, "rule": "from 0 to 1"}
RGB: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(map(math.isfinite, value)),
    "rule": "three numbers, one per channel",
}
DEVIATIONS: dict[str, Any] = {
    "check": lambda value: len(value) == 3 and all(0 < deviation < math.inf for deviation in value),
    "rule": "three numbers greater than 0, one per channel",
}

KIND_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list of numbers such as 0.5,0.5,0.5",
    Patterns: "a list of regular expressions such as 'conv1.*;bn1.*'",
    Pairs: "a list of pairs such as 'fc.*=1;.*=0.1'",
}
