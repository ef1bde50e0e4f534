"""Runs the fuzz tests with twenty times as many inputs, which are different ones each time."""

import os
import subprocess
import sys

import pytest
from fuzzing import TIMES


@pytest.mark.slow
@pytest.mark.parametrize("path", ["config/test_fuzz_config.py", "test_fuzz_files.py", "data/test_fuzz_images.py"])
def test_twenty_times_as_many(path, pytestconfig):
    command = [sys.executable, "-m", "pytest", "-q", f"tests/{path}"]
    environment = os.environ | {"SFT_JAX_FUZZ": str(TIMES)}
    done = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
