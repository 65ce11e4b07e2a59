"""A member: one adapter of its own, and how it is trained."""

from typing import Annotated, Literal

from pydantic import Field

from serve.manifest import Name
from training.recipe.values import Strict


class TrainingOptions(Strict):
    """How one LoRA is trained."""

    seed: int = 0
    rank: int = Field(16, ge=1, le=512)
    alpha: float | None = Field(None, gt=0)
    """LoRA's alpha; default: the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    bag: Annotated[float, Field(gt=0, le=1)] | Literal["bootstrap"] = 1.0
    """Share of the training rows drawn without replacement, or `bootstrap`: as many as there are, with replacement."""
    epochs: int = Field(4, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    normalize: bool = True
    """Encoder: L2-normalise the pooled vector before the head."""
    head: Literal["prototypes", "random"] = "prototypes"
    """Encoder: where a normalised head starts: at the labels' centroids, or anywhere, as its seed has it."""


class MemberRecipe(TrainingOptions):
    name: Name


class CandidateRecipe(MemberRecipe):
    """An adapter that could replace a member later; it is trained, but stays outside the ensemble."""

    member: Name
