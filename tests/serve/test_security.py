"""Every threat in docs/security.md has a test, and the tests that it names are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [
    line
    for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and line.count("|") == 4 and "**" not in line
]
THREATS = [line for line in LINES if not line.startswith("| threat")]


def test_there_are_threats() -> None:
    assert len(THREATS) > 25


@pytest.mark.parametrize("line", THREATS, ids=lambda line: line[2:50])
def test_its_tests_are_there(line: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
    assert named, "a threat without a test"
    for file, function in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\(", text, re.MULTILINE), f"{file}::{function}"
