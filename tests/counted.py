"""How many times a test does what it is about; `python tests/counted.py` writes the sums into README.md."""

import importlib
import math
import re
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")
ROW = re.compile(r"^(\| (\w+) \|[^|]+\|)[\d, ]+\|[\d, ]+\|(.*)\|$", re.MULTILINE)


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


def counted(row: re.Match) -> str:
    """A row of the table with what its tests do by default, and what those marked slow do."""
    from fuzzing import TIMES

    start, kind, names = row.groups()
    figures = {"default": 0, "slow": 0}
    for file, name in re.findall(r"`(test_\w+)\.py::(\w+)`", names):
        test = getattr(importlib.import_module(file), name)
        if name == "test_twenty_times_as_many":
            figures["slow"] += TIMES * figures["default"]
        else:
            marks = {mark.name for mark in getattr(test, "pytestmark", [])}
            figures["slow" if "slow" in marks else "default"] += count(test, kind)
    default, slow = (f" {number:,} " if number else " " for number in figures.values())
    return f"{start}{default}|{slow}|{names}|"


if __name__ == "__main__":
    sys.path[:0] = [str(TABLE.parents[1]), *{str(path.parent) for path in TABLE.parent.rglob("test_*.py")}]
    TABLE.write_text(ROW.sub(counted, TABLE.read_text()))
