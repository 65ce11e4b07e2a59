"""The wheel: what it contains, and that it works without the rest of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    "serve": ROOT,
    "training": ROOT,
    "choir_client": ROOT / "clients",
    "choir_cli": ROOT / "clients",
}
IGNORED = ["__pycache__", "*.egg-info", ".*", "build", "dist", "site", "shared"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with this environment's setuptools, from a copy, since a build writes into its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("serve", "training", "clients", "tests", "deployments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*IGNORED))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's packages alone."""
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--no-compile", "--target", folder, wheel)
    return folder


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _run(installed: Path, *arguments: str) -> str:
    """Return what Python prints when it runs outside of the repository with `installed` first on its path."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_ships_all_files_of_its_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {PurePosixPath(name) for name in archive.namelist()}
    data = {path for path in shipped if not path.parts[0].endswith(".dist-info")}

    expected = {
        PurePosixPath(path.relative_to(folder).as_posix())
        for package, folder in SOURCES.items()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert data == expected
    assert {PurePosixPath(package) / "py.typed" for package in SOURCES} <= data


def test_its_packages_are_imported_from_where_it_is_installed(installed: Path) -> None:
    code = (
        "import serve.bundle, serve.fusion.fuse, serve.config.settings, training.recipe, choir_client, choir_cli.main\n"
        "print(*(m.__file__ for m in (serve.bundle, training.recipe, choir_client, choir_cli.main)), sep='\\n')"
    )

    files = _run(installed, "-c", code).split("\n")

    assert all(Path(file).is_relative_to(installed) for file in files if file)


def test_its_command_knows_what_to_do(installed: Path) -> None:
    script = (installed / "bin" / "choir").read_text(encoding="utf-8")

    assert "from choir_cli.main import run" in script
    assert "predict" in _run(installed, str(installed / "bin" / "choir"), "--help")


def test_its_recipes_can_be_read(installed: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "import training\n"
        "from training.recipe import load_recipe\n"
        "print(load_recipe(Path(training.__file__).parent / 'example' / 'recipe.yaml').name)"
    )

    assert _run(installed, "-c", code).strip() == "support"


def test_it_creates_the_tables_of_a_new_store(installed: Path, tmp_path: Path) -> None:
    code = (
        "import serve, sys\n"
        "from serve.control.database.database import Database\n"
        "database = Database.open(sys.argv[1])\n"
        "print(serve.__file__, database.incarnation, database.ensembles())\n"
        "database.close()"
    )

    said = _run(installed, "-c", code, f"sqlite:///{tmp_path / 'choir.db'}").split(maxsplit=1)

    assert Path(said[0]).is_relative_to(installed)
    assert said[1].strip() == "1 {}"


def test_it_says_what_it_is(installed: Path) -> None:
    (folder,) = installed.glob("*.dist-info")
    told = Parser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))

    assert told["Name"] == "choir-serve"
    urls = dict(url.split(", ") for url in told.get_all("Project-URL", []))
    assert {"Homepage", "Issues", "Changelog", "Documentation"} <= set(urls)
    assert told["Version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
