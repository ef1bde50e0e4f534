"""Tests that all tests named in the tables of tests/README.md exist."""

import ast
import re

import pytest

ROWS = 26


@pytest.fixture(scope="module")
def table(pytestconfig):
    return (pytestconfig.rootpath / "tests" / "README.md").read_text()


def names_in(path):
    """Returns the names of the test functions in a file; methods are "Class::name"."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


def test_the_tests_named_in_the_readme_exist(table, pytestconfig):
    files = {path.name: path for path in (pytestconfig.rootpath / "tests").rglob("test_*.py")}
    numbers = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("| -") or cells[-1] == "tests":
            continue
        named = re.findall(r"`(test_\w+\.py)::([\w:]+)`", cells[-1])
        assert named, line
        for file, name in named:
            assert name in set(names_in(files[file])), f"{file}::{name}"
        if cells[0].isdigit():
            numbers.append(int(cells[0]))
    assert numbers == list(range(1, ROWS + 1))
