"""Trains one stage of a member: an adapter on the frozen base, on the member's bag, saved in PEFT's format."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from peft import PeftModel
from transformers import set_seed

from serve.adapter.origin import record_base
from serve.base.positions import longest_text
from serve.base.two_towers import towers_width
from serve.prompting.reader import PromptReader
from serve.prompting.zero_shot import label_prompts
from training.data.cleaning.families import families_of
from training.data.parts import own_rows
from training.data.splits import bag
from training.data.steps import inputs_of
from training.data.targets import targets
from training.progress import Advance, counted
from training.recipe import (
    AnyStage,
    DataRecipe,
    DistillationStage,
    EnsembleRecipe,
    LoraStage,
    MemberRecipe,
    RecipeError,
    Targets,
)
from training.stages import causal, distillation, encoder
from training.stages.base import Base
from training.stages.distillation import Teacher
from training.stages.encoder import EncoderWithHead
from training.stages.fit import (
    IGNORED,
    Collate,
    FitOptions,
    FitRows,
    Stage,
    fit,
    fit_rows,
    in_bfloat16,
)
from training.stages.lora import with_lora
from training.stages.soft import continued, with_virtual_tokens
from training.stages.towers import rows as towers
from training.stages.towers.inputs import TowerInputs
from training.stages.towers.prompted import PromptedClassifier
from training.stages.vision_language import rows as pictured
from training.stages.vision_language.prompts import ImagePrompts


@dataclass(frozen=True)
class MemberData:
    """The rows of an ensemble, from which each member draws its bag, and what their columns mean."""

    rows: Dataset
    text: str
    """Column of the inputs."""
    labels: Sequence[str]
    """The labels in their order; none for generation and regression."""
    max_tokens: int | None
    """Longer texts are cut; None means the base's context."""
    text_pair: str | None = None
    """Column of the second texts if rows are pairs."""
    images: bool = False
    """Whether the inputs are images."""
    image_text: str | None = None
    """Column of the texts beside images."""

    @classmethod
    def of(cls, rows: Dataset, labels: Sequence[str], data: DataRecipe) -> "MemberData":
        """Return the rows with what the recipe says of their columns."""
        return cls(
            rows,
            data.input,
            labels,
            data.max_tokens,
            data.text_pair,
            bool(data.images),
            data.image_text,
        )

    @property
    def columns(self) -> list[str]:
        """The columns of the inputs."""
        second = self.image_text or self.text_pair
        return [self.text, *([second] if second else [])]


@dataclass(frozen=True)
class MemberStage:
    """One stage of a member, and the adapters of the stages before it."""

    member: MemberRecipe
    recipe: AnyStage
    before: Sequence[Path] = ()
    """The folders of the adapters so far. Distillation continues the last one."""
    teacher: Teacher | None = None
    """The teacher of a distillation."""


def train_stage(
    own: MemberStage,
    ensemble: EnsembleRecipe,
    base: Base,
    data: MemberData,
    stage: Stage,
    target: Path,
) -> None:
    """Train one adapter, with its head if it has one, on the member's rows; save it in `target`. Raises RecipeError."""
    part = own_rows(data.rows, own.member)
    rows = part.select(bag(len(part), own.member.bag, own.member.seed))
    training = _Training(own, ensemble, base, replace(data, rows=rows))
    target.mkdir(parents=True, exist_ok=True)
    adapted = training.with_head(stage, target) if base.by_heads else training.as_text(stage)
    _save(adapted, base, target)


class _Training:
    """One stage with its base loaded."""

    def __init__(
        self, own: MemberStage, ensemble: EnsembleRecipe, base: Base, data: MemberData
    ) -> None:
        self._own = own
        self._ensemble = ensemble
        self._base = base
        self._data = data
        self._tokenizer: Any = base.tokenizer()
        self._model: Any = base.model()
        self._limit = _limit(own, data.max_tokens, longest_text(self._model.config.to_dict()))
        recipe = own.recipe
        self._options = FitOptions(
            recipe.epochs,
            recipe.batch_size,
            recipe.learning_rate,
            own.member.seed,
            recipe.early_stopping,
        )
        set_seed(own.member.seed)

    def as_text(self, stage: Stage) -> PeftModel:
        own, data, tokenizer = self._own, self._data, self._tokenizer
        adapted = self._adapted()
        invocation = self._ensemble.invocation(own.member)
        plain, collate = text_rows(self._ensemble, data, self._base, self._limit, invocation)
        if not isinstance(own.recipe, DistillationStage):
            fit(adapted, self._fit_rows(plain), collate, self._options, stage)
            return adapted
        if self._ensemble.task == "generation":
            with _asked(own, stage, len(plain)) as (teacher, advance):
                tops = teacher.answer_tokens(*distillation.answers_of(plain), advance)
            soft = distillation.for_answers(plain, collate, tops, own.recipe)
        else:
            soft = distillation.for_labels(
                list(data.rows[data.text]),
                right_answers(self._ensemble, data),
                self._taught(stage),
                self._ensemble,
                data.labels,
                tokenizer,
                self._limit,
                own.recipe,
            )
        features = self._fit_rows(soft.features)
        fit(adapted, features, soft.collate, self._options, stage, soft.loss)
        return adapted

    def with_head(self, stage: Stage, target: Path) -> PeftModel:
        own, data = self._own, self._data
        lora = next(each for each in own.member.stages if isinstance(each, LoraStage))
        adapted = self._adapted()
        model = encoder_with_head(self._model, self._base, self._ensemble, data, lora)
        features, collate = encoder_rows(self._ensemble, data, self._base, self._limit)
        if isinstance(own.recipe, DistillationStage):
            model.load_head(own.before[-1])
            soft = self._taught(stage)
            student = distillation.for_encoder(
                features, collate, soft, own.recipe, self._ensemble.task
            )
            rows = self._fit_rows(student.features)
            fit(model, rows, student.collate, self._options, stage, student.loss)
        else:
            rows = self._fit_rows(features)
            if lora.normalize and lora.head == "prototypes":
                # An untrained LoRA changes no vector, and computing it takes time.
                with adapted.disable_adapter():
                    model.start_informed(
                        encoder.batches_of(rows.train, collate), in_bfloat16(stage.precision)
                    )
            fit(model, rows, collate, self._options, stage)
        model.save_head(target)
        return adapted

    def _fit_rows(self, features: Dataset) -> FitRows:
        """Hold out features for early stopping if the stage asks for it. There is one feature for each row."""
        return fit_rows(features, families_of(self._data.rows, self._data.columns), self._options)

    def _adapted(self) -> PeftModel:
        """Return the base with the adapter to train. Adapters of earlier stages are merged into the base."""
        own, recipe = self._own, self._own.recipe
        if isinstance(recipe, DistillationStage):
            *frozen, last = own.before
            model = _merged(self._model, frozen)
            if isinstance(own.member.adapters[-1], LoraStage):
                return PeftModel.from_pretrained(model, str(last), is_trainable=True)
            return continued(model, last)
        model = _merged(self._model, own.before)
        if isinstance(recipe, LoraStage):
            reads: Targets = "vision" if self._data.images else "text"
            return with_lora(
                model, recipe, self._base, own.member.name, self._invocation_tokens(), reads
            )
        return with_virtual_tokens(model, recipe, self._tokenizer)

    def _taught(self, stage: Stage) -> NDArray[np.float64]:
        """Return the teacher's label probabilities for the member's rows [rows, labels], or its values [rows, 1]."""
        data = self._data
        pairs = list(data.rows[data.text_pair]) if data.text_pair else None
        with _asked(self._own, stage, len(data.rows)) as (teacher, advance):
            return teacher.soft_answers(list(data.rows[data.text]), pairs, advance)

    def _invocation_tokens(self) -> Sequence[int] | None:
        text = self._ensemble.invocation(self._own.member)
        return (
            None if text is None else PromptReader(self._tokenizer).invocation_of_text(text).tokens
        )


def text_rows(
    ensemble: EnsembleRecipe,
    data: MemberData,
    base: Base,
    limit: int,
    invocation: str | None = None,
) -> tuple[Dataset, Collate]:
    """Return the features of the rows for a model that answers by text, and what makes batches of them. `invocation`:
    the text from which an activated LoRA acts. Raises RecipeError."""
    tokenizer = base.tokenizer()
    if data.images:
        prompts = ImagePrompts(str(base.folder))
        cells = inputs_of(data.rows, data.columns)
        features = pictured.member_features(data.rows, cells, ensemble, tokenizer, prompts, limit)
        return features, pictured.collate_for(tokenizer, prompts)
    features = causal.member_features(data.rows, data.text, ensemble, tokenizer, limit, invocation)
    return features, causal.collate_for(tokenizer)


def encoder_with_head(
    model: Any, base: Base, ensemble: EnsembleRecipe, data: MemberData, recipe: LoraStage
) -> EncoderWithHead | PromptedClassifier:
    """Put a head for the ensemble's task on `model`, which is `base` with or without LoRA layers. Where prompts stand
    for heads, there is none."""
    if ensemble.prompts:
        texts = label_prompts(ensemble.prompts, data.labels, ensemble.verbalizers)
        written = TowerInputs(str(base.folder)).batch(texts)
        return PromptedClassifier(model, written, len(ensemble.prompts), recipe)
    return EncoderWithHead(
        # Without the layer that predicts tokens.
        model.base_model,
        towers_width(model.config.to_dict()) if base.towers else model.config.hidden_size,
        len(data.labels) or 1,
        towers=data.text_pair is not None,
        task=ensemble.task,
        stage=recipe,
        pooling=None if base.towers else recipe.pooling or base.pooling,
    )


def encoder_rows(
    ensemble: EnsembleRecipe, data: MemberData, base: Base, limit: int
) -> tuple[Dataset, Collate]:
    """Return the features of the rows for a model with a head, and what makes batches of them."""
    truth = right_answers(ensemble, data)
    if base.towers:
        inputs = TowerInputs(str(base.folder), limit=limit)
        return towers.member_features(data.rows, data.columns, truth), towers.collate_for(inputs)
    tokenizer = base.tokenizer()
    features = encoder.member_features(data.rows, data.columns, truth, tokenizer, limit)
    return features, encoder.collate_for(tokenizer)


def right_answers(ensemble: EnsembleRecipe, data: MemberData) -> list[Any]:
    """Return each row's right answer as a number, or as numbers in multilabel. A row without one, from which only a
    distillation learns, has `IGNORED`, in multilabel for each label, and NaN in regression."""
    cells = list(data.rows[ensemble.answer])
    given = [cell for cell in cells if cell is not None]
    truth = iter(targets(ensemble.task, data.labels, given, "training").astype(float).tolist())
    if ensemble.task == "regression":
        return [math.nan if cell is None else next(truth) for cell in cells]
    if ensemble.task == "multilabel":
        return [
            [IGNORED] * len(data.labels) if cell is None else [*map(int, next(truth))]
            for cell in cells
        ]
    return [IGNORED if cell is None else int(next(truth)) for cell in cells]


def _limit(own: MemberStage, max_tokens: int | None, context: int) -> int:
    """Return how many tokens of a row fit beside the virtual tokens. Raises RecipeError if none fit."""
    virtual = max(getattr(stage, "virtual_tokens", 0) for stage in own.member.stages)
    if virtual >= context:
        raise RecipeError(
            f"member {own.member.name!r}: {virtual} virtual tokens leave no room for a prompt in the base's context of "
            f"{context} tokens"
        )
    return min(max_tokens or context, context - virtual)


def _merged(model: Any, folders: Sequence[Path]) -> Any:
    """Merge the LoRAs of earlier stages into the weights of `model`, so that the next adapter is trained on top."""
    for folder in folders:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model


@contextmanager
def _asked(own: MemberStage, stage: Stage, rows: int) -> Iterator[tuple[Teacher, Advance]]:
    """Yield the stage's teacher, whose answers have their own row of progress."""
    assert own.teacher is not None, "a distillation's job finds its teacher first"
    total = rows * own.teacher.passes
    with counted(stage.watch, f"{stage.title}: teacher", total) as advance:
        yield own.teacher, advance


def _save(model: PeftModel, base: Base, target: Path) -> None:
    config = model.peft_config["default"]
    config.base_model_name_or_path = base.name
    # The order of a set differs between processes, and so would the adapter's digest.
    if isinstance(names := getattr(config, "target_modules", None), set):
        config.target_modules = sorted(names)
    # "auto" would look the base up on the hub.
    model.save_pretrained(target, save_embedding_layers=False)
    # PEFT's model card is an empty form, and not part of the adapter.
    (target / "README.md").unlink(missing_ok=True)
    record_base(target, base.folder)
