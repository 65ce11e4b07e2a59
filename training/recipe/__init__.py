"""The recipe: one YAML file that says which base, which data, which members and which fusion become a bundle.

Every key is described in `docs/training.md`. Paths are relative to the recipe's folder; `${NAME}` and
`${NAME:-default}` in a path are replaced by environment variables.
"""

from training.recipe.base import HEAD_SIZES, BaseRecipe, Scratch
from training.recipe.data import DataRecipe, ExampleData
from training.recipe.ensemble import EnsembleRecipe
from training.recipe.fusion import (
    GENERATION_METHODS,
    FusionRecipe,
    GenerationMethod,
)
from training.recipe.member import CandidateRecipe, MemberRecipe
from training.recipe.recipe import Recipe, load_recipe, parse_recipe
from training.recipe.stages import (
    AdapterStage,
    LoraStage,
    PrefixStage,
    PromptStage,
    PTuningStage,
    SoftStage,
)
from training.recipe.values import RecipeError

__all__ = [
    "GENERATION_METHODS",
    "HEAD_SIZES",
    "AdapterStage",
    "BaseRecipe",
    "CandidateRecipe",
    "DataRecipe",
    "EnsembleRecipe",
    "ExampleData",
    "FusionRecipe",
    "GenerationMethod",
    "LoraStage",
    "MemberRecipe",
    "PTuningStage",
    "PrefixStage",
    "PromptStage",
    "Recipe",
    "RecipeError",
    "Scratch",
    "SoftStage",
    "load_recipe",
    "parse_recipe",
]
