"""The refusals, in a process without run-time type checks, so that the library's own errors are the ones seen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NETWORKS = "tests/refusals/models"


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(("tests/refusals", f"--ignore={NETWORKS}"), id="all but networks"),
        pytest.param((NETWORKS,), id="networks", marks=pytest.mark.full),
    ],
)
def test_bad_input_is_refused_by_the_library_itself(chosen):
    command = [sys.executable, "-m", "pytest", "-q", *chosen, "-o", "addopts=--import-mode=importlib"]
    environment = os.environ | {"REFUSALS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30
