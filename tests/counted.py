"""How many times a test does what it is about: the figures in README.md, which `test_promises.py` adds up."""

import math


def counts(**numbers: int):
    """Each case of a test does so many things of these kinds, in place of one of any kind."""

    def mark(test):
        test.counted = numbers
        return test

    return mark


def count(test, kind: str) -> int:
    """How many things of a kind a test does, in all its cases."""
    cases = [len(list(mark.args[1])) for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return math.prod(cases) * getattr(test, "counted", {}).get(kind, 1)
