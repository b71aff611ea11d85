"""The README and the docs do what they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *(pytest.param(page, marks=pytest.mark.full) for page in sorted((ROOT / "docs").glob("*.md"))),
]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_there_are_examples():
    assert blocks("python")
    assert len(blocks("bash")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs_from_top_to_bottom(page):
    names = {}
    for code in blocks("python", page.read_text()):
        exec(compile(code, page.name, "exec"), names)


def test_ci_runs_the_test_command_as_it_stands():
    (command,) = [block.strip() for block in blocks("bash") if "pytest" in block]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
