"""One root for every error that is meant for a person."""

import ast
import re
from pathlib import Path

import serve.errors
from serve.errors import first_line, last_line

ROOT = Path(__file__).parents[2]


def user_errors() -> set[str]:
    """The names of all classes below `serve.errors.UserError`, read from the sources."""
    bases: dict[str, set[str]] = {}
    for package in ("serve", "training", "clients/choir_cli"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases[node.name] = {
                        base.id for base in node.bases if isinstance(base, ast.Name)
                    }
    found = {"UserError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def test_the_tree_at_the_top_of_the_file_names_every_error() -> None:
    drawn = set(
        re.findall(r"\b[A-Z]\w+\b", (serve.errors.__doc__ or "").split("The Python client")[0])
    )
    assert user_errors() <= drawn
    assert {name for name in drawn if name.endswith("Error")} <= user_errors()


def test_lines_of_a_message() -> None:
    error = RuntimeError("\n  the engine ended \nwith a cause\n\n")
    assert first_line(error) == "the engine ended"
    assert last_line(error) == "with a cause"
    assert first_line(KeyError()) == last_line(KeyError()) == "KeyError"
