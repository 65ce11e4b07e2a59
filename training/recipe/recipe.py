"""The whole recipe, and how it is read from YAML."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from serve.manifest import Name
from training.recipe.annotate import AnnotateRecipe, Rule, Teacher
from training.recipe.base import BaseRecipe, Scratch
from training.recipe.clean import CleanRecipe
from training.recipe.data import DataRecipe, ExampleData
from training.recipe.ensemble import EnsembleRecipe
from training.recipe.fusion import FusionRecipe
from training.recipe.member import CandidateRecipe
from training.recipe.problems import keys_of, sentence
from training.recipe.source import Source
from training.recipe.split import SplitRecipe
from training.recipe.stages import STAGES
from training.recipe.values import RecipeError, Strict


class Recipe(Strict):
    """A whole recipe; see the module."""

    name: Name
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast in training where the CPU or GPU computes it natively, else float32."""
    base: BaseRecipe
    data: DataRecipe
    ensembles: list[EnsembleRecipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _ensembles_fit(self) -> Self:
        names = [ensemble.name for ensemble in self.ensembles]
        if len(set(names)) != len(names):
            raise ValueError("ensembles need different names")
        if self.base.kind == "encoder" and any(e.task == "generation" for e in self.ensembles):
            raise ValueError("generation needs a causal base")
        if self.base.kind == "causal":
            if any(e.task in ("multilabel", "regression") for e in self.ensembles):
                raise ValueError(
                    "multilabel and regression need an encoder, whose members have heads"
                )
            if self.data.text_pair:
                raise ValueError("text_pair needs an encoder, which reads pairs as two towers")
        for ensemble in self.ensembles:
            for member in [*ensemble.members, *ensemble.candidates]:
                if self.base.kind == "encoder" and member.soft:
                    raise ValueError(
                        f"{ensemble.name}/{member.name}: prefix, prompt and p_tuning need a causal base: vLLM's "
                        "encoders take no virtual tokens; under an encoder a member is a lora"
                    )
        return self

    def find(self, name: str) -> EnsembleRecipe | None:
        """The ensemble called `name`, if the recipe has it."""
        return next((ensemble for ensemble in self.ensembles if ensemble.name == name), None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the recipe says; a resumed run must have the same."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError with the key and what was expected."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping with name, base, data and ensembles")
    return parse_recipe(content, folder=path.parent.resolve(), source=path.name)


def parse_recipe(content: Mapping[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """Validate a recipe's content; relative paths start at `folder`."""
    try:
        return Recipe.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        problems = [sentence(problem, content, _keys()) for problem in error.errors()]
        raise RecipeError(f"{source}: {'; '.join(problems)}") from None


def _keys() -> set[str]:
    return keys_of(
        (
            Recipe,
            BaseRecipe,
            Scratch,
            DataRecipe,
            ExampleData,
            Source,
            CleanRecipe,
            SplitRecipe,
            AnnotateRecipe,
            Teacher,
            Rule,
            EnsembleRecipe,
            CandidateRecipe,
            FusionRecipe,
            *STAGES.values(),
        )
    )
