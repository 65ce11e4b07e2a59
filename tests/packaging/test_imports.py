"""What importing costs, and that each name has one place to import it from."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ["serve", "training", "clients/choir_client", "clients/choir_cli", "tests"]
MODULES = {
    ".".join(file.relative_to((ROOT / package).parent).with_suffix("").parts): ast.parse(
        file.read_text(encoding="utf-8")
    )
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
}
"""Module -> its syntax tree. A package may offer its modules' names: those stand under `package.__init__`."""


def test_the_contract_loads_without_heavy_packages():
    heavy = ("torch", "vllm", "ray", "transformers", "peft", "sklearn", "scipy", "lightgbm")
    code = (
        "import sys, serve.bundle, serve.adapter, serve.fusion.fuse, serve.fusion.fitting.weights;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_name_is_imported_from_the_module_that_defines_it() -> None:
    imports = [
        (module, node.module, alias)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    imported = {(module, alias.asname or alias.name) for module, _, alias in imports}

    second_doors = [
        f"{module} takes {alias.name} from {source}, which imports it itself"
        for module, source, alias in imports
        if (source, alias.name) in imported
    ]

    assert not second_doors
