"""The imports of the package flow one way, and torch stays out of it."""

import ast

import pytest

# A module may import those of earlier rows, and its neighbours of the same row.
LAYERS = [
    {
        "",
        "accelerators",
        "allocator",
        "cache",
        "class_weights",
        "monitor",
        "cli",
        "config_docs",
        "digest",
        "errors",
        "estimate",
        "linear_probe",
    }
    | {"command", "optim_arguments", "schema", "shipped", "traced"},
    {"config", "signals", "ops", "progress"},
    {"data", "exported", "finetune", "models", "pictures", "regularize", "weights"},
    {"optim", "optim_staged", "state"},
    {"step"},
    {"epoch", "processes", "parallel"},
    {"checkpoint", "feed", "report"},
    {"evaluation", "passes", "runs"},
    {"classifier", "task"},
    {"batch_norm", "finite", "plan", "programs", "scoring", "start"},
    {"reporting", "saves"},
    {"lr_find", "train"},
    {"compare"},
    {
        "benchmark",
        "benchmark/__main__",
        "doctor",
        "doctor/__main__",
        "evaluate",
        "export",
        "main",
        "predict",
        "report/__main__",
        "search",
        "search/__main__",
    },
]
# A process of its own, which the benchmark starts where torch is installed.
MAY_IMPORT_TORCH = "benchmark/torch_side.py"


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
    for path in sorted((root / "sft_jax").rglob("*.py")):
        parts = path.relative_to(root / "sft_jax").with_suffix("").parts
        # A package's command may import what comes after the package.
        command = len(parts) > 1 and parts[-1] == "__main__"
        yield path, "/".join(parts) if command else "" if parts[0] == "__init__" else parts[0]


def test_imports_flow_one_way(pytestconfig):
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    for path, name in modules(pytestconfig.rootpath):
        assert name in level, f"{path} stands in no layer"
        for imported in imports(path):
            if imported.startswith("sft_jax."):
                target = imported.split(".")[1]
                assert level[target] <= level[name], f"{path} imports {imported}, which comes later"


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_the_package_does_not_import(package, pytestconfig):
    for path, _ in modules(pytestconfig.rootpath):
        if path.match(MAY_IMPORT_TORCH):
            continue
        assert package not in {name.split(".")[0] for name in imports(path)}, path


def test_one_file_knows_about_devices(pytestconfig):
    for path, name in modules(pytestconfig.rootpath):
        if name != "parallel":
            assert not {"jax.sharding", "jax.pmap"} & set(imports(path)), path
            assert "pmap(" not in path.read_text(), path
