"""Tests that the notebook has no outputs, and runs from top to bottom on scikit-learn's digits."""

import importlib.util
import json

import pytest

PATH = "notebooks/finetune_cifar10.ipynb"
# Replaces CIFAR-10 and the ImageNet weights, so that nothing is downloaded.
DIGITS = {
    "NOTEBOOK_CONFIG": "configs/digits.py:source",
    "NOTEBOOK_CHANGES": "--config.epochs=3",
    "NOTEBOOK_WEIGHTS": "",
    "XLA_FLAGS": "",  # one device, as users of a CPU have
}
TOOLS = ("nbformat", "nbclient", "ipykernel")


@pytest.fixture(scope="module")
def cells(pytestconfig):
    return json.loads((pytestconfig.rootpath / PATH).read_text())["cells"]


def test_the_notebook_contains_no_outputs(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_one_cell_has_the_parameters(cells):
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1
    text = "".join(tagged[0]["source"])
    assert all(name in text for name in DIGITS if name.startswith("NOTEBOOK_"))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
def test_the_notebook_runs_from_top_to_bottom(pytestconfig, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    # The libraries that run notebooks are not ours: their warnings are not errors.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    for name, value in DIGITS.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    monkeypatch.setenv("NOTEBOOK_RUN", str(run))
    monkeypatch.setenv("SFT_JAX_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(pytestconfig.rootpath / PATH, as_version=4)
    here = {"metadata": {"path": str(pytestconfig.rootpath / "notebooks")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=here).execute()
    printed = {cell["id"]: _text(cell) for cell in notebook.cells if cell["cell_type"] == "code"}
    assert "compiling and timing steps at 32 px" in printed["doctor"]
    assert "epoch 3/3  loss " in printed["train"]
    results = json.loads((run / "results.json").read_text())
    assert f"test accuracy {results['test_accuracy']:.2%}" in printed["look"]
    assert "<iframe srcdoc=" in printed["look"]
    assert all((run / f"test{number}.png").is_file() for number in range(3))
    names = set(results["class_names"])
    predicted = [line.rpartition(": ")[2].split()[0] for line in printed["python"].splitlines()]
    assert len(predicted) == 3
    assert names.issuperset(predicted)
    assert "test0.png" in printed["predict"]


def _text(cell) -> str:
    """Returns what a cell printed or displayed."""
    parts = []
    for output in cell["outputs"]:
        parts.append(output.get("text", ""))
        parts += output.get("data", {}).get("text/html", [])
    return "".join(parts)
