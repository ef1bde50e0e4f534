"""Counts the kills, faults and inputs of the tests; `python tests/counted.py` writes the sums to README.md."""

import importlib
import math
import re
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")
ROW = re.compile(r"^(\| (\w+) \|[^|]+\|)[\d, ]+\|[\d, ]+\|(.*)\|$", re.MULTILINE)


def counts(**numbers: int):
    """Declares how many kills, faults or inputs a test case comprises, by kind; the default is one."""

    def mark(test):
        test.counted = numbers
        return test

    return mark


def count(test, kind: str) -> int:
    """Returns how many kills, faults or inputs of a kind all cases of a test comprise."""
    cases = [len(list(mark.args[1])) for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return math.prod(cases) * getattr(test, "counted", {}).get(kind, 1)


def counted(row: re.Match) -> str:
    """Returns a row of the table with updated counts of the tests that CI runs and of those marked slow."""
    from fuzzing import TIMES

    start, kind, names = row.groups()
    figures = {"ci": 0, "slow": 0}
    for file, name in re.findall(r"`(test_\w+)\.py::(\w+)`", names):
        test = getattr(importlib.import_module(file), name)
        if name == "test_twenty_times_as_many":
            figures["slow"] += TIMES * figures["ci"]
        else:
            marks = {mark.name for mark in getattr(test, "pytestmark", [])}
            figures["slow" if "slow" in marks else "ci"] += count(test, kind)
    ci, slow = (f" {number:,} " if number else " " for number in figures.values())
    return f"{start}{ci}|{slow}|{names}|"


if __name__ == "__main__":
    sys.path[:0] = [str(TABLE.parents[1]), *{str(path.parent) for path in TABLE.parent.rglob("test_*.py")}]
    TABLE.write_text(ROW.sub(counted, TABLE.read_text()))
