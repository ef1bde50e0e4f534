"""Tests that imports between the package's folders are acyclic, and that it does not import torch."""

import ast
import re

import pytest

# A folder may import those of earlier rows and, within its row, those named before it.
ROWS = [
    ["errors", "ops"],
    ["config"],
    ["runtime", "cli"],
    ["models", "data"],
    ["tasks", "run"],
    ["training", "inference"],
    ["report", "search", "doctor", "benchmark", "embed", "inspect"],
    ["", "main", "evaluate", "predict", "export", "command", "fit"],
]
# Separate processes, which the benchmark starts if torch is installed.
MAY_IMPORT_TORCH = "benchmark/torch_*.py"
ROOT_MODULES = 8


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "sft_jax":
                yield from (f"sft_jax.{alias.name}" for alias in node.names if not alias.name.startswith("_"))


def modules(root):
    """Returns the package's files with their folders, or their names at the root (empty for the package itself)."""
    for path in sorted((root / "sft_jax").rglob("*.py")):
        first = path.relative_to(root / "sft_jax").with_suffix("").parts[0]
        yield path, "" if first == "__init__" else first


def test_imports_flow_one_way(pytestconfig):
    place = {name: place for place, name in enumerate(name for row in ROWS for name in row)}
    for path, folder in modules(pytestconfig.rootpath):
        for imported in imports(path):
            if imported.startswith("sft_jax."):
                target = imported.split(".")[1]
                assert place[target] <= place[folder], f"{path} imports {imported}, which comes later"


def test_there_are_few_modules_at_the_root(pytestconfig):
    assert len(list((pytestconfig.rootpath / "sft_jax").glob("*.py"))) <= ROOT_MODULES


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_the_package_does_not_import_torch(package, pytestconfig):
    for path, _ in modules(pytestconfig.rootpath):
        if path.match(MAY_IMPORT_TORCH):
            continue
        assert package not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("package", ["scipy", "sklearn"])
def test_slow_packages_are_imported_within_functions(package, pytestconfig):
    """They take a second to import, and most commands do not need them."""
    for path, _ in modules(pytestconfig.rootpath):
        assert not re.search(rf"^(import|from) {package}\b", path.read_text(), re.MULTILINE), path


def test_only_one_file_replaces_files(pytestconfig):
    root = pytestconfig.rootpath
    for path in [*(root / "sft_jax").rglob("*.py"), *(root / "convert").rglob("*.py")]:
        if not path.match("runtime/files.py"):
            assert not re.search(r"\.tmp\b|\bos\.(replace|rename)\b", path.read_text()), path


def test_only_one_file_knows_about_devices(pytestconfig):
    for path, _ in modules(pytestconfig.rootpath):
        if not path.match("runtime/devices.py"):
            assert not {"jax.sharding", "jax.pmap"} & set(imports(path)), path
            assert "pmap(" not in path.read_text(), path


def test_few_files_know_about_processes(pytestconfig):
    """They read and write files, load examples, or talk to devices; and the command that connects the processes."""
    root = pytestconfig.rootpath / "sft_jax"
    importing = {
        path.relative_to(root).as_posix()
        for path, _ in modules(pytestconfig.rootpath)
        if re.search(r"from sft_jax.runtime import .*\bprocesses\b", path.read_text())
    }
    assert importing == {
        "run/folder.py",
        "run/checkpoints.py",
        "data/loader.py",
        "runtime/devices.py",
        "main.py",
    }
