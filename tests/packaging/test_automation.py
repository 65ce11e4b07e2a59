"""What runs for every change: workflows and hooks call commands that exist, for every Python that is named."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def _commands() -> list[str]:
    """Return every command line of every workflow."""
    jobs = [
        job
        for workflow in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in _yaml(workflow)["jobs"].values()
    ]
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_workflows_call_targets_of_the_makefile() -> None:
    called = {
        target for command in _commands() for target in re.findall(r"make ([a-z-]+)", command)
    }

    assert {"test", "lint", "docs"} <= called
    assert called <= _targets()


def test_every_python_that_the_package_names_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        match[1]
        for classifier in project["classifiers"]
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
    }
    jobs = _yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]

    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == named


def test_hooks_run_what_make_lint_runs() -> None:
    hooks = _yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    linters = set(re.findall(r"\$\(BIN\)/(\S+)", lint))

    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == linters
