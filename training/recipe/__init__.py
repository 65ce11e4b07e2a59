"""The recipe: one YAML file that says which base, data, members and fusion become a bundle.

`docs/recipe-reference.md` describes every key; `reference.py` writes it from the models here. Paths are relative to the
recipe's folder. In a path, `${NAME}` and `${NAME:-default}` stand for environment variables.
"""

from training.recipe.base import HEAD_SIZES, BaseRecipe, Scratch
from training.recipe.base_stages import (
    FineTuningStage,
    Objective,
    PretrainingStage,
    default_objective,
)
from training.recipe.data import DataRecipe, ExampleData
from training.recipe.ensemble import EnsembleRecipe
from training.recipe.fusion import (
    GENERATION_METHODS,
    FusionRecipe,
    GenerationMethod,
)
from training.recipe.member import CandidateRecipe, MemberRecipe, RowsRecipe
from training.recipe.recipe import Recipe, load_recipe, parse_recipe
from training.recipe.search import METRICS, RangeRecipe, SearchRecipe, Values
from training.recipe.stages import (
    AdapterStage,
    AloraStage,
    AnyStage,
    DistillationStage,
    LoraStage,
    PrefixStage,
    PromptStage,
    PTuningStage,
    SoftStage,
    StageRecipe,
    Targets,
    TeacherRecipe,
)
from training.recipe.values import RecipeError

__all__ = [
    "GENERATION_METHODS",
    "HEAD_SIZES",
    "METRICS",
    "AdapterStage",
    "AloraStage",
    "AnyStage",
    "BaseRecipe",
    "CandidateRecipe",
    "DataRecipe",
    "DistillationStage",
    "EnsembleRecipe",
    "ExampleData",
    "FineTuningStage",
    "FusionRecipe",
    "GenerationMethod",
    "LoraStage",
    "MemberRecipe",
    "Objective",
    "PTuningStage",
    "PrefixStage",
    "PretrainingStage",
    "PromptStage",
    "RangeRecipe",
    "Recipe",
    "RecipeError",
    "RowsRecipe",
    "Scratch",
    "SearchRecipe",
    "SoftStage",
    "StageRecipe",
    "Targets",
    "TeacherRecipe",
    "Values",
    "default_objective",
    "load_recipe",
    "parse_recipe",
]
