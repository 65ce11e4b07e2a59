"""The stages of a member: what each kind of adapter is made of, and how it is trained."""

from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from serve.manifest import Name
from training.recipe.values import RecipePath, Strict

StageKind = Literal["lora", "prefix", "prompt", "p_tuning", "distillation"]


class StageRecipe(Strict):
    """What the training of every kind of adapter takes."""

    epochs: int = Field(4, ge=1)
    """Passes over the rows."""
    batch_size: int = Field(32, ge=1)
    """Rows of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the one-cycle schedule."""
    early_stopping: int | None = Field(None, ge=1)
    """End after so many epochs without a lower loss on held-out rows, with the weights of the best one."""


class LoraStage(StageRecipe):
    """A LoRA (Hu et al. 2021); where members answer by heads with one of its own."""

    kind: Literal["lora"] = "lora"
    """The kind of stage."""
    rank: int = Field(16, ge=1, le=512)
    """Rank of the low-rank matrices."""
    alpha: float | None = Field(None, gt=0)
    """LoRA's alpha; default: the rank."""
    rslora: bool = False
    """Scale by alpha over the rank's square root (Kalajdzievski 2023), not by alpha over the rank."""
    layers: int | None = Field(None, ge=1)
    """Adapt the first so many layers alone."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the LoRA; on a CPU rounded to a multiple of 1/256."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """The modules that get a LoRA: all linear ones, or those with these names."""
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    """Heads, classification: share of the target that is spread over all labels."""
    loss: Literal["mse", "huber"] = "mse"
    """Heads, regression: the squared error, or Huber's."""
    normalize: bool = True
    """Heads: L2-normalise the pooled vector before the head."""
    head: Literal["prototypes", "random"] = "prototypes"
    """Heads: where a normalised one starts: at the labels' centroids (for values: at the line through the cosines of
    pairs, or at least squares), or anywhere, as its seed has it."""


class PrefixStage(StageRecipe):
    """Prefix tuning (Li and Liang 2021): learned keys and values before the prompt, in every layer."""

    kind: Literal["prefix"] = "prefix"
    """The kind of stage."""
    learning_rate: float = Field(1e-1, gt=0)
    """Peak of the one-cycle schedule; default with a projection: 0.01."""
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Tokens of the context that the adapter takes."""
    projection: int | None = Field(None, ge=1)
    """Width of an MLP that makes the keys and values while training; default: they are trained themselves."""
    init: str | None = Field(None, min_length=1)
    """Start at the base's keys and values of this text; default: of random tokens of the vocabulary."""

    @model_validator(mode="before")
    @classmethod
    def _gentler_with_a_projection(cls, data: Any) -> Any:
        # The MLP multiplies every step that its weights take.
        if isinstance(data, dict) and data.get("projection"):
            return {"learning_rate": 1e-2, **data}
        return data

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.projection and self.init:
            raise ValueError(
                "init and projection exclude each other: the start of a projected prefix is that of its MLP"
            )
        return self


class PromptStage(StageRecipe):
    """Prompt tuning (Lester et al. 2021): learned embeddings before the prompt."""

    kind: Literal["prompt"] = "prompt"
    """The kind of stage."""
    learning_rate: float = Field(3e-2, gt=0)
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Tokens of the context that the adapter takes."""
    init: str | None = Field(None, min_length=1)
    """Start at the embeddings of this text; default: of random tokens of the vocabulary."""


class PTuningStage(StageRecipe):
    """P-tuning (Liu et al. 2021): embeddings before the prompt that an MLP makes while training."""

    kind: Literal["p_tuning"] = "p_tuning"
    """The kind of stage."""
    learning_rate: float = Field(5e-3, gt=0)
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Tokens of the context that the adapter takes."""
    encoder_hidden: int = Field(128, ge=1)
    """Width of the MLP."""


SoftStage: TypeAlias = PrefixStage | PromptStage | PTuningStage
"""Kinds that put virtual tokens before the prompt."""
AdapterStage: TypeAlias = LoraStage | SoftStage


class TeacherRecipe(Strict):
    """Who is learned from; exactly one."""

    ensemble: Name | None = None
    """An ensemble that stands earlier in the recipe, fused; where it votes, its members' average."""
    member: str | None = Field(None, pattern=r"^[^/]+/[^/]+$")
    """`ensemble/member` of such an ensemble."""
    path: RecipePath | None = None
    """Another causal model, larger for instance, without adapters."""

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        given = [key for key in ("ensemble", "member", "path") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of ensemble, member and path (given: {', '.join(given) or 'none'})"
            )
        return self

    @property
    def taught_by(self) -> str | None:
        """The ensemble that must be finished first."""
        return self.ensemble or (self.member.partition("/")[0] if self.member else None)


class DistillationStage(StageRecipe):
    """Go on with the adapter of the stage before, towards a teacher's tempered probabilities (Hinton et al. 2015)."""

    kind: Literal["distillation"] = "distillation"
    """The kind of stage."""
    learning_rate: float = Field(1e-3, gt=0)
    teacher: TeacherRecipe
    """Who is learned from."""
    temperature: float = Field(2.0, gt=0)
    """Divides the log-probabilities of teacher and student."""
    hard: float = Field(0.1, ge=0, lt=1)
    """Weight of the true answers in the loss."""


AnyStage: TypeAlias = Annotated[AdapterStage | DistillationStage, Field(discriminator="kind")]

STAGES: dict[StageKind, type[StageRecipe]] = {
    kind: stage
    for stage in (LoraStage, PrefixStage, PromptStage, PTuningStage, DistillationStage)
    for kind in get_args(stage.model_fields["kind"].annotation)
}
