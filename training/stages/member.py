"""One stage of a member: an adapter on the frozen base, trained on the member's bag and saved in PEFT's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import set_seed

from training.data.splits import bag
from training.recipe import AdapterStage, EnsembleRecipe, LoraStage, MemberRecipe, RecipeError
from training.stages import causal, encoder
from training.stages.base import Base
from training.stages.fit import FitOptions, Stage, fit
from training.stages.soft import with_virtual_tokens
from training.targets import targets


@dataclass(frozen=True)
class MemberData:
    """What every member of an ensemble is trained from; each draws its own bag of it."""

    rows: Dataset
    text: str
    """Column of the inputs."""
    labels: Sequence[str]
    """The labels in their order; none for generation and regression."""
    max_tokens: int | None
    """Longer inputs are cut; None: the base's context."""
    text_pair: str | None = None
    """Column of the second texts, where rows are pairs."""

    @property
    def columns(self) -> list[str]:
        """The columns of the inputs."""
        return [self.text, *([self.text_pair] if self.text_pair else [])]


@dataclass(frozen=True)
class MemberStage:
    """One of a member's stages, and the adapters that the stages before it left."""

    member: MemberRecipe
    recipe: AdapterStage
    before: Sequence[Path] = ()


def train_stage(
    own: MemberStage,
    ensemble: EnsembleRecipe,
    base: Base,
    data: MemberData,
    stage: Stage,
    target: Path,
) -> None:
    """Train one adapter (and head) on the member's bag of the rows, and save it in `target`. Raises RecipeError."""
    member, recipe = own.member, own.recipe
    bagged = data.rows.select(bag(len(data.rows), member.bag, member.seed))
    tokenizer, model = base.tokenizer(), base.model()
    limit = _limit(recipe, data.max_tokens, model.config.max_position_embeddings, member.name)
    options = FitOptions(recipe.epochs, recipe.batch_size, recipe.learning_rate, member.seed)
    set_seed(member.seed)
    target.mkdir(parents=True, exist_ok=True)
    if base.kind == "causal":
        adapted = _adapted(_with_adapters(model, own.before), recipe, member, base, tokenizer)
        features = causal.member_features(bagged, data.text, ensemble, tokenizer, limit)
        fit(adapted, features, causal.collate_for(tokenizer), options, stage)
    else:
        assert isinstance(recipe, LoraStage), "the recipe refuses virtual tokens under an encoder"
        adapted = _with_lora(model, recipe, member, base)
        model = encoder.EncoderWithHead(
            adapted,
            model.config.hidden_size,
            len(data.labels) or 1,
            towers=data.text_pair is not None,
            task=ensemble.task,
            stage=recipe,
        )
        truth = targets(ensemble.task, data.labels, list(bagged[ensemble.answer]), "training")
        features = encoder.member_features(bagged, data.columns, truth.tolist(), tokenizer, limit)
        collate = encoder.collate_for(tokenizer)
        if recipe.normalize and recipe.head == "prototypes":
            model.start_informed(encoder.batches_of(features, collate))
        fit(model, features, collate, options, stage)
        model.save_head(target)
    _save(adapted, base, target)


def _limit(recipe: AdapterStage, max_tokens: int | None, context: int, member: str) -> int:
    """How many tokens of a row fit beside the virtual ones."""
    room = context - (0 if isinstance(recipe, LoraStage) else recipe.virtual_tokens)
    if room < 1:
        raise RecipeError(
            f"member {member!r}: {context - room} virtual tokens leave no room for a prompt in the base's context of "
            f"{context} tokens"
        )
    return min(max_tokens or room, room)


def _with_adapters(model: Any, folders: Sequence[Path]) -> Any:
    """`model` with earlier stages' LoRA in its weights: what is trained on top sees it as the base."""
    for folder in folders:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model


def _adapted(
    model: Any, recipe: AdapterStage, member: MemberRecipe, base: Base, tokenizer: Any
) -> PeftModel:
    if isinstance(recipe, LoraStage):
        return _with_lora(model, recipe, member, base)
    return with_virtual_tokens(model, recipe, tokenizer)


def _with_lora(model: nn.Module, recipe: LoraStage, member: MemberRecipe, base: Base) -> PeftModel:
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if base.kind == "causal" else TaskType.FEATURE_EXTRACTION,
        r=recipe.rank,
        lora_alpha=recipe.alpha or recipe.rank,
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        # The pooler is not on the way to the mean-pooled vector: a LoRA there would never learn and vLLM refuses it.
        exclude_modules=r".*\.?pooler\..*" if base.kind == "encoder" else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(
            f"member {member.name!r}: target_modules {recipe.target_modules!r} do not fit the base: {reason}"
        ) from None


def _save(model: PeftModel, base: Base, target: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = base.name
    # "auto" would look the base up on the hub.
    model.save_pretrained(target, save_embedding_layers=False)
    # PEFT's model card is a form to fill in and is not part of an adapter's content.
    (target / "README.md").unlink(missing_ok=True)
