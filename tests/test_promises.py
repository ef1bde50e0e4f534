"""The tables in tests/README.md name tests that exist, and count what these do."""

import ast
import importlib
import re

import pytest
from counted import count
from fuzzing import TIMES

ROWS, COUNTS = 26, 8


@pytest.fixture(scope="module")
def table(pytestconfig):
    return (pytestconfig.rootpath / "tests" / "README.md").read_text()


def names_in(path):
    """The names of the test functions in a file, those of classes as "Class::name"."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


def test_every_promise_names_tests_that_exist(table, pytestconfig):
    numbers = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("| -") or cells[-1] == "tests":
            continue
        named = re.findall(r"`(test_\w+\.py)::([\w:]+)`", cells[-1])
        assert named, line
        for file, name in named:
            assert name in set(names_in(pytestconfig.rootpath / "tests" / file)), f"{file}::{name}"
        if cells[0].isdigit():
            numbers.append(int(cells[0]))
    assert numbers == list(range(1, ROWS + 1))


def test_the_counts(table):
    """What the tests of a row do by default, and what those marked slow do."""
    rows = re.findall(r"^\| (\w+) \|[^|]+\|([\d, ]+)\|([\d, ]+)\|(.*)\|$", table, re.MULTILINE)
    assert len(rows) == COUNTS
    for kind, *written, names in rows:
        figures = {"default": 0, "slow": 0}
        for file, name in re.findall(r"`(test_\w+)\.py::(\w+)`", names):
            test = getattr(importlib.import_module(file), name)
            if name == "test_twenty_times_as_many":
                figures["slow"] += TIMES * figures["default"]
            else:
                marks = {mark.name for mark in getattr(test, "pytestmark", [])}
                figures["slow" if "slow" in marks else "default"] += count(test, kind)
        assert [int(cell.replace(",", "").strip() or 0) for cell in written] == list(figures.values()), names
