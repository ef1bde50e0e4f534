"""Tests that the commit hooks and CI run the same checks."""

import re


def test_the_commit_hooks_are_the_checks_of_ci(pytestconfig):
    hooks = (pytestconfig.rootpath / ".pre-commit-config.yaml").read_text()
    script = (pytestconfig.rootpath / ".ci" / "run").read_text()
    (checks,) = re.findall(r'^step "ruff, mypy"\n((?:.+\n)+)', script, re.MULTILINE)
    assert re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE) == checks.splitlines()
    for setting in ("language: system", "pass_filenames: false", "always_run: true"):
        assert hooks.count(f" {setting}\n") == len(checks.splitlines()), setting
