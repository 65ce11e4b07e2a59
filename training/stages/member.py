"""One member: a LoRA on the frozen base, trained on its own bag and saved in PEFT's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import set_seed

from serve.origin import record_base
from training.data.splits import bag
from training.recipe import EnsembleRecipe, MemberRecipe, RecipeError
from training.stages import causal, encoder
from training.stages.base import Base
from training.stages.fit import FitOptions, Stage, fit


@dataclass(frozen=True)
class MemberData:
    """What every member of an ensemble is trained from; each draws its own bag of it."""

    rows: Dataset
    text: str
    """Column of the inputs."""
    labels: Sequence[str]
    """The labels in their order; none for generation."""
    max_tokens: int | None
    """Longer inputs are cut; None: the base's context."""


def train_member(
    member: MemberRecipe,
    ensemble: EnsembleRecipe,
    base: Base,
    data: MemberData,
    stage: Stage,
    target: Path,
) -> None:
    """Train one LoRA (and head) on the member's bag of the rows, and save it in `target`. Raises RecipeError."""
    bagged = data.rows.select(bag(len(data.rows), member.bag, member.seed))
    tokenizer, model = base.tokenizer(), base.model()
    context = model.config.max_position_embeddings
    limit = min(data.max_tokens or context, context)
    options = FitOptions(member.epochs, member.batch_size, member.learning_rate, member.seed)
    set_seed(member.seed)
    lora = _with_lora(model, member, base)
    target.mkdir(parents=True, exist_ok=True)
    if base.kind == "causal":
        features = causal.member_features(bagged, data.text, ensemble, tokenizer, limit)
        fit(lora, features, causal.collate_for(tokenizer), options, stage)
    else:
        classifier = encoder.EncoderClassifier(
            lora,
            model.config.hidden_size,
            len(data.labels),
            normalize=member.normalize,
            label_smoothing=member.label_smoothing,
        )
        features = encoder.member_features(
            bagged, data.text, ensemble, data.labels, tokenizer, limit
        )
        collate = encoder.collate_for(tokenizer)
        if member.normalize and member.head == "prototypes":
            classifier.start_from_prototypes(encoder.batches_of(features, collate))
        fit(classifier, features, collate, options, stage)
        classifier.save_head(target)
    _save(lora, base, target)


def _with_lora(model: nn.Module, member: MemberRecipe, base: Base) -> PeftModel:
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if base.kind == "causal" else TaskType.FEATURE_EXTRACTION,
        r=member.rank,
        lora_alpha=member.alpha or member.rank,
        lora_dropout=member.dropout,
        target_modules=member.target_modules,
        # The pooler is not on the way to the mean-pooled vector: a LoRA there would never learn and vLLM refuses it.
        exclude_modules=r".*\.?pooler\..*" if base.kind == "encoder" else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(
            f"member {member.name!r}: target_modules {member.target_modules!r} do not fit the base: {reason}"
        ) from None


def _save(model: PeftModel, base: Base, target: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = base.name
    # "auto" would look the base up on the hub.
    model.save_pretrained(target, save_embedding_layers=False)
    # PEFT's model card is a form to fill in and is not part of an adapter's content.
    (target / "README.md").unlink(missing_ok=True)
    record_base(target, base.folder)
