"""How members become one, and what is fitted for it."""

from typing import Literal, get_args

from pydantic import Field

from training.recipe.values import Strict

ClassificationMethod = Literal["average", "weighted_average", "vote", "stack"]
CLASSIFICATION_METHODS: tuple[ClassificationMethod, ...] = (
    "average",
    "weighted_average",
    "vote",
    "stack",
)
GenerationMethod = Literal["average", "product", "vote"]
GENERATION_METHODS: tuple[GenerationMethod, ...] = get_args(GenerationMethod)
"""`average` and `product` at every token, `vote` over whole answers."""


class FusionRecipe(Strict):
    """How members become one, and what is fitted on the validation rows."""

    method: ClassificationMethod | GenerationMethod | Literal["best"] = "best"
    """`best`: the candidate with the best cross-fitted validation score; for generation, `average`."""
    candidates: list[ClassificationMethod] = Field(list(CLASSIFICATION_METHODS), min_length=1)
    criterion: Literal["accuracy", "log_loss"] = "log_loss"
    weights: Literal["greedy", "accuracy"] = "greedy"
    space: Literal["probability", "log"] = "probability"
    temperature: bool = True
    folds: int = Field(5, ge=2)
