"""The README does what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert blocks("python")
    assert len(blocks("bash")) >= 2


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_ci_runs_the_test_command_as_it_stands():
    (command,) = [block.strip() for block in blocks("bash") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
