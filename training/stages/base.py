"""Finds the base of a recipe (in a folder, on the hub, in a package, or trained here) and copies it into the bundle."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, AutoModel

from serve.base.architectures import architectures, unserved_base
from serve.base.attention import attention_of
from serve.base.folder import BaseError, Pooling, kind_of, read_config
from serve.base.packages import PACKAGES, packaged_base
from serve.base.side_files import MODEL_FILES, read_pooling, read_tokenizer
from serve.base.two_towers import TwoTowers, towers_of
from serve.bundle import BaseSpec, Bundle
from serve.files import no_folder
from training.data.readers.records import first_words
from training.recipe import BaseRecipe, RecipeError
from training.stages.vision_language.family import causal_loader, writes_about_images

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
"""Finds the layer's number in the name of a module of transformers."""


@dataclass(frozen=True)
class Base:
    """The frozen base on disk."""

    folder: Path
    kind: Literal["causal", "encoder"]
    name: str
    """The base's name in the adapters' configurations: a hub id or a name from the recipe, never a path."""
    by_heads: bool
    """Whether members answer by heads."""

    @property
    def pooling(self) -> Pooling:
        """Which vector of a text heads read, unless their recipe says otherwise. Raises RecipeError if the base says
        one that they cannot read."""
        if self.kind == "causal":
            return "last"
        try:
            return read_pooling(self.folder)
        except BaseError as error:
            raise RecipeError(
                f"base: {self.folder}: {error} Say `pooling: mean`, cls or last in the members"
            ) from None

    @property
    def towers(self) -> TwoTowers | None:
        """What the base has of two towers, one for images and one for texts; None if it reads texts alone."""
        return towers_of(read_config(self.folder))

    @property
    def writes_about_images(self) -> bool:
        """Whether the base is causal, and reads images too."""
        return self.kind == "causal" and writes_about_images(read_config(self.folder))

    def model(self) -> Any:
        """Load the base in float32."""
        config = AutoConfig.from_pretrained(self.folder).to_dict()
        loader = causal_loader(config) if self.kind == "causal" else AutoModel
        attention = attention_of(config)
        return loader.from_pretrained(self.folder, dtype="float32", attn_implementation=attention)

    def tokenizer(self) -> Any:
        """Load the base's tokenizer."""
        return read_tokenizer(str(self.folder))


def find_base(recipe: BaseRecipe, name: str, own: Path) -> Base:
    """Find the base of a recipe, and copy it into the bundle's folder `own` if the recipe says so.

    A base that was trained in this run must already be in `own`. Raises RecipeError if the base cannot be found or
    served.
    """
    folder, label = _source(recipe, own), _label(recipe, name)
    base = Base(folder, recipe.kind, label, recipe.by_heads)
    _check_model(base)
    if folder == own or recipe.id or not recipe.copy_files:
        return base
    own.mkdir(parents=True, exist_ok=True)
    for pattern in MODEL_FILES:
        for file in sorted(folder.glob(pattern)):
            target = own / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    return Base(own, recipe.kind, label, recipe.by_heads)


def finished_base(recipe: BaseRecipe, name: str, bundle: Bundle) -> Base:
    """Return the base of a finished bundle, given the recipe's base and name. Nothing is copied: where the recipe found
    it may be gone. Raises RecipeError if it is on the hub and cannot be fetched, or if it was removed."""
    own = bundle.base_folder
    folder = own or from_hub(bundle.base_source, str(bundle.base_revision))
    base = Base(folder, recipe.kind, _label(recipe, name), recipe.by_heads)
    _check_model(base)
    return base


def base_spec(recipe: BaseRecipe, base: Base, own: Path) -> BaseSpec:
    """Return the base's entry in `bundle.json`."""
    if recipe.id and not recipe.stages:
        return BaseSpec(id=recipe.id, revision=recipe.revision, kind=recipe.bundle_kind)
    path = "base" if base.folder == own else str(base.folder)
    return BaseSpec(path=path, kind=recipe.bundle_kind)


def _label(recipe: BaseRecipe, name: str) -> str:
    """Return the base's name in the adapters' configurations."""
    if recipe.scratch or recipe.stages:
        return f"{name}-base"
    if recipe.package:
        return PACKAGES[recipe.package].model
    return recipe.id or Path(str(recipe.path)).name


def _source(recipe: BaseRecipe, own: Path) -> Path:
    if recipe.scratch or recipe.stages:
        return own
    if recipe.package:
        return from_package(recipe.package)
    if recipe.id:
        return from_hub(recipe.id, str(recipe.revision))
    folder = Path(str(recipe.path))
    if not folder.is_dir():
        raise RecipeError(f"base.path: the folder {folder} does not exist")
    return folder


def from_package(name: str) -> Path:
    """Return the folder of the base in a Python package. Raises RecipeError if it is absent or changed."""
    try:
        return packaged_base(name)
    except BaseError as error:
        raise RecipeError(f"base.package: {error}") from None


def from_hub(model_id: str, revision: str) -> Path:
    """Return the folder of a model in the hub's local cache, fetched if needed. Raises RecipeError."""
    try:
        return _fetched(model_id, revision)
    except BaseError as error:
        raise RecipeError(f"base.id: {error}; without a network give base.path") from None


def named_base(name: str) -> Path:
    """Return the folder of a base that a command line names: a folder, one of PACKAGES, or a hub id, perhaps with its
    revision (org/name@revision). Raises BaseError."""
    if Path(name).is_dir():
        return Path(name)
    if name in PACKAGES:
        return packaged_base(name)
    model_id, _, revision = name.partition("@")
    try:
        return _fetched(model_id, revision or "main")
    except BaseError as error:
        packages = ", ".join(PACKAGES)
        raise BaseError(
            f"{no_folder(name, Path(name))} As a hub id: {error}. A base is a model folder, {packages}, or a hub id "
            "(org/name, org/name@revision)."
        ) from None


def _fetched(model_id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model_id, revision=revision, allow_patterns=list(MODEL_FILES))
        )
    except Exception as error:  # network, authorisation and cache errors share no base class
        raise BaseError(
            f"cannot get {model_id}@{revision} from the hub or its local cache ({first_words(error)})"
        ) from None


def _check_model(base: Base) -> None:
    """Check that the base can be served and is of the kind that the recipe says. Raises RecipeError otherwise."""
    try:
        config = read_config(base.folder)
    except BaseError as error:
        raise RecipeError(f"base: {base.folder} holds no model: {error}") from None
    try:
        found = kind_of(config)
    except BaseError:  # the files do not say the kind, so the recipe decides
        found = base.kind
    if not any(base.folder.glob("*.safetensors")):
        raise RecipeError(f"base: {base.folder} has no *.safetensors; Choir loads no other weights")
    if (reason := unserved_base(config, found)) is not None:
        raise RecipeError(f"base: {reason}")
    if found != base.kind:
        raise RecipeError(
            f"base.kind is {base.kind}, but {base.folder} holds {', '.join(architectures(config))}"
        )
