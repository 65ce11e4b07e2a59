"""The log lines that docs/operations.md promises, as patterns."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
PLACEHOLDERS = {
    "N": r"[\d.]+",
    "ID": r"[0-9a-f]{12}",
    "ACTION": r"(swap|rollback)",
    "ACTOR": r"\S+",
    "ENSEMBLE": r"[\w.-]+",
    "VERSION": r"[\w.-]+@\d+",
    "PROCESS": r"(engine|gateway|controller)[-/]\d+",
    "PLACE": r".+",
    "REASON": r".+",
}
"""What stands in capitals in a documented line, and what it may be in a real one."""


def documented() -> dict[str, re.Pattern[str]]:
    """Each line that the section on logs promises, as it stands there, and the pattern that a real line must match."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## Logs\n")[2].partition("\n## ")[0]
    _, console, files = section.split("| line | said when |\n|---|---|\n")
    rows = [*console.split("\n\n")[0].splitlines(), *files.split("\n\n")[0].splitlines()]
    return {line: _pattern(line) for row in rows for line in re.findall(r"^\| `([^`]+)`", row)}


def line_with(words: str) -> re.Pattern[str]:
    """The pattern of the one documented line that has these words."""
    (line,) = [each for each in documented() if words in each]
    return documented()[line]


def _pattern(line: str) -> re.Pattern[str]:
    parts = re.split(r"\b([A-Z]+)\b", line)
    return re.compile(
        "".join(PLACEHOLDERS.get(part, re.escape(part)) for part in parts) + r"$", re.MULTILINE
    )
