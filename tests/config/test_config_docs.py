"""Tests that configs/README.md matches the schema, and that its values can be typed."""

import sys

import pytest

from sft_jax.config.docs import PATH, as_text, document, main
from sft_jax.config.schema import KEYS
from sft_jax.errors import run_command


def test_the_page_agrees_with_the_schema(pytestconfig):
    written = (pytestconfig.rootpath / PATH).read_text()
    assert written == document(), "run: python -m sft_jax.config.docs"


def test_every_key_has_a_row_with_all_its_cells():
    rows = [line for line in document().splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(KEYS)
    for row in rows:
        cells = [cell.strip() for cell in row.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 4
        assert all(cells), row


@pytest.mark.parametrize("name", KEYS)
def test_defaults_can_be_typed(name):
    key = KEYS[name]
    assert key.parse(as_text(key.default)) == key.default
    assert key.check(key.default)


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["config_docs"])
    monkeypatch.chdir(tmp_path)
    assert run_command(main) == 2
    assert "run this in the root of the repository" in capsys.readouterr().err
    (tmp_path / "configs").mkdir()
    assert run_command(main) == 0
    assert (tmp_path / PATH).read_text() == document()
