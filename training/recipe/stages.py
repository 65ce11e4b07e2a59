"""The recipe's part on the stages of a member: the kinds of adapters, and how each is trained."""

from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from serve.manifest import Name
from training.recipe.values import RecipePath, Strict

Targets = Literal["vision", "text", "both", "connector", "language", "all"]
"""A part of a base that reads images. `both` and `all` are all of them."""
StageKind = Literal["lora", "alora", "prefix", "prompt", "p_tuning", "distillation"]

LARGEST_RANK = 512
"""The largest rank of a LoRA that vLLM takes."""


class StageRecipe(Strict):
    """The keys of every kind of stage."""

    epochs: int = Field(4, ge=1)
    """Passes over the rows."""
    batch_size: int = Field(32, ge=1)
    """Rows in a batch."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of the one-cycle schedule."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without a lower loss on held-out rows, and keep the weights of the best epoch."""


class LoraStage(StageRecipe):
    """A LoRA (Hu et al. 2021). If members answer by heads, it has a head too."""

    kind: Literal["lora"] = "lora"
    """The kind of stage."""
    rank: int = Field(16, ge=1, le=LARGEST_RANK)
    """Rank of the low-rank matrices."""
    alpha: float | None = Field(None, gt=0)
    """LoRA's alpha; default: the rank."""
    rslora: bool = False
    """Scale by alpha over the square root of the rank (Kalajdzievski 2023), not by alpha over the rank."""
    layers: int | None = Field(None, ge=1)
    """Adapt only this many layers, from the first; default: all layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the LoRA. On a CPU, it is rounded to a multiple of 1/256."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """The modules that get a LoRA: all linear modules, or the modules with these names."""
    targets: Targets | Annotated[list[Targets], Field(min_length=1)] | None = None
    """Bases that read images: the part that gets a LoRA, or a list of parts. CLIP and SigLIP have `vision` and `text`,
    each with its projection; default: the one that reads the rows. Idefics3 and LLaVA have `vision`, `connector` and
    `language`; default: `language`. `both` and `all` are all parts."""
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    """Heads, classification: share of the target that is spread over all labels."""
    loss: Literal["mse", "huber"] = "mse"
    """Heads, regression: the squared error or the Huber loss."""
    normalize: bool = True
    """Heads: L2-normalise the pooled vector before the head."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """Heads: which vector of a text the head reads: the mean over the tokens, the first token's or the last one's.
    Default: what an encoder's `1_Pooling/config.json` says, or else the mean; over a causal base always `last`."""
    head: Literal["prototypes", "random"] = "prototypes"
    """Heads: the start of a normalised head. `prototypes`: the labels' centroids; in regression, least squares on the
    vectors or, for pairs, on their cosines. `random`: random weights by the member's seed."""


class AloraStage(LoraStage):
    """An activated LoRA (Greenewald et al. 2025): it acts from its invocation at the prompt's end on, and all before is
    the base's. Served members share the prompt, so many of them cost little more than one. For answers by text."""

    kind: Literal["alora"] = "alora"  # type: ignore[assignment]
    """The kind of stage."""
    invocation: str | None = Field(None, min_length=1)
    """The text from which the adapter acts. The template ends in it, or in `{invocation}`; default: the template's last
    line, with the line break before it."""


class PrefixStage(StageRecipe):
    """Prefix tuning (Li and Liang 2021): learned keys and values before the prompt in every layer."""

    kind: Literal["prefix"] = "prefix"
    """The kind of stage."""
    learning_rate: float = Field(1e-1, gt=0)
    """Peak learning rate of the one-cycle schedule; default with a projection: 0.01."""
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Number of virtual tokens. They take places in the base's context."""
    projection: int | None = Field(None, ge=1)
    """Width of an MLP that makes the keys and values during training; default: no MLP."""
    init: str | None = Field(None, min_length=1)
    """Start from the base's keys and values of this text; default: those of random tokens."""

    @model_validator(mode="before")
    @classmethod
    def _gentler_with_a_projection(cls, data: Any) -> Any:
        # Each step of the MLP's weights changes all keys and values, so the learning rate is smaller.
        if isinstance(data, dict) and data.get("projection"):
            return {"learning_rate": 1e-2, **data}
        return data

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.projection and self.init:
            raise ValueError(
                "init and projection exclude each other: with a projection, the MLP's weights decide the start"
            )
        return self


class PromptStage(StageRecipe):
    """Prompt tuning (Lester et al. 2021): learned embeddings before the prompt."""

    kind: Literal["prompt"] = "prompt"
    """The kind of stage."""
    learning_rate: float = Field(3e-2, gt=0)
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Number of virtual tokens. They take places in the base's context."""
    init: str | None = Field(None, min_length=1)
    """Start from the embeddings of this text; default: those of random tokens."""


class PTuningStage(StageRecipe):
    """P-tuning (Liu et al. 2021): embeddings before the prompt, which an MLP makes during training."""

    kind: Literal["p_tuning"] = "p_tuning"
    """The kind of stage."""
    learning_rate: float = Field(5e-3, gt=0)
    virtual_tokens: int = Field(16, ge=1, le=512)
    """Number of virtual tokens. They take places in the base's context."""
    encoder_hidden: int = Field(128, ge=1)
    """Width of the MLP."""


SoftStage: TypeAlias = PrefixStage | PromptStage | PTuningStage
"""The kinds that put virtual tokens before the prompt."""
AdapterStage: TypeAlias = LoraStage | AloraStage | SoftStage


class TeacherRecipe(Strict):
    """The teacher of a distillation. Give exactly one of the keys."""

    ensemble: Name | None = None
    """An ensemble that is listed earlier in the recipe. It teaches its fused probabilities; if it votes, its members'
    average."""
    member: str | None = Field(None, pattern=r"^[^/]+/[^/]+$")
    """`ENSEMBLE/MEMBER`: a member of an ensemble that is listed earlier."""
    path: RecipePath | None = None
    """Another causal model, for example a larger one, without adapters."""

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
        """The name of the ensemble that must be finished before it can teach; None for another model."""
        return self.ensemble or (self.member.partition("/")[0] if self.member else None)


class DistillationStage(StageRecipe):
    """Distillation (Hinton et al. 2015): trains the adapter of the stage before it further, on a teacher's
    probabilities."""

    kind: Literal["distillation"] = "distillation"
    """The kind of stage."""
    learning_rate: float = Field(1e-3, gt=0)
    teacher: TeacherRecipe
    """The teacher."""
    temperature: float = Field(2.0, gt=0)
    """Temperature by which the log-probabilities of teacher and student are divided."""
    hard: float = Field(0.1, ge=0, lt=1)
    """Weight of the right answers in the loss; the teacher has the rest."""


AnyStage: TypeAlias = Annotated[AdapterStage | DistillationStage, Field(discriminator="kind")]

STAGES: dict[StageKind, type[StageRecipe]] = {
    kind: stage
    for stage in (
        LoraStage,
        AloraStage,
        PrefixStage,
        PromptStage,
        PTuningStage,
        DistillationStage,
    )
    for kind in get_args(stage.model_fields["kind"].annotation)
}
