"""The whole recipe, the checks of its parts against each other, and reading it from YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from serve.labels import IMAGE
from serve.manifest import Name
from training.recipe.annotate import AnnotateRecipe, Rule, Teacher
from training.recipe.base import BaseRecipe, Scratch
from training.recipe.base_stages import FineTuningStage, PretrainingStage
from training.recipe.clean import CleanRecipe
from training.recipe.data import DataRecipe, ExampleData, SplitRecipe
from training.recipe.ensemble import EnsembleRecipe
from training.recipe.fusion import FusionRecipe
from training.recipe.member import CandidateRecipe, RowsRecipe
from training.recipe.problems import keys_of, sentence
from training.recipe.search import RangeRecipe, SearchRecipe
from training.recipe.source import Source
from training.recipe.stages import STAGES, DistillationStage, LoraStage, TeacherRecipe
from training.recipe.values import EventLog, RecipeError, Strict

RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes that Choir brings."""


class Recipe(Strict):
    """A whole recipe: one base, the data, and the ensembles that share both."""

    name: Name
    """The recipe's name."""
    seed: int = 0
    """Seed of the splits, the folds and a base from scratch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training. `auto`: bfloat16 autocast if the CPU or GPU computes it natively, else float32."""
    report_to: list[EventLog] = Field(default_factory=list)
    """Where training also writes its losses: `tensorboard` to `BUNDLE/.choir-train/events/`; `mlflow` and `wandb` where
    their environment variables say. Their packages must be installed."""
    base: BaseRecipe
    """The model that all members share."""
    data: DataRecipe
    """The labelled rows, and how they are prepared and split."""
    ensembles: list[EnsembleRecipe] = Field(min_length=1)
    """The ensembles, which all share the base."""

    @model_validator(mode="after")
    def _ensembles_fit(self) -> Self:
        names = [ensemble.name for ensemble in self.ensembles]
        if len(set(names)) != len(names):
            raise ValueError("ensembles need different names")
        self._images_fit()
        if self.base.by_heads:
            self._heads_can_answer()
            return self
        if any(e.task in ("multilabel", "regression") for e in self.ensembles):
            raise ValueError(
                "multilabel and regression need heads: an encoder, or a causal base with answers: heads"
            )
        if self.data.text_pair:
            raise ValueError(
                "text_pair needs heads, which read pairs as two towers: an encoder, or a causal base with answers: "
                "heads"
            )
        return self

    def _images_fit(self) -> None:
        scratch = self.base.scratch
        if self.data.image is None:
            if scratch and scratch.reads_images:
                raise ValueError(
                    f"the {scratch.architecture} from scratch learns from images; name their column in data.image"
                )
            for ensemble in self.ensembles:
                if IMAGE in ensemble.template:
                    raise ValueError(
                        f"{ensemble.name}: the template has a place for an image; name the images' column in data.image"
                    )
            return
        if (scratch and not scratch.reads_images) or self.base.package:
            raise ValueError(
                "data.image needs a base that reads images: a CLIP, a SigLIP, an Idefics3 or a LLaVA"
            )
        if self.base.kind == "encoder" and self.data.image_text:
            raise ValueError(
                "data.image_text needs a causal base: heads read an image or a text, not both"
            )
        for ensemble in self.ensembles:
            if ensemble.baselines:
                raise ValueError(
                    f"{ensemble.name}: baselines are of texts; leave them out over images"
                )
        if self.base.kind == "causal":
            self._can_write_about_images()

    def _can_write_about_images(self) -> None:
        if self.base.answers == "heads":
            raise ValueError(
                "heads over a causal base read texts alone; leave out answers, or take a CLIP or a SigLIP"
            )
        column = f"{{{self.data.image}}}"
        for source in self.base.pretraining:
            times = [document.count(column) for document in source.documents]
            if max(times) > 1:
                raise ValueError(f"base: a document names {column} twice, and a row has one image")
            if not any(times):
                raise ValueError(
                    f"base: no document has a place for the image; write {column} where it stands"
                )
        for ensemble in self.ensembles:
            if ensemble.prompts:
                raise ValueError(
                    f"{ensemble.name}: prompts need a CLIP or a SigLIP; leave them out, and say labels as text"
                )
            if self.data.image_text and "{text}" not in ensemble.template:
                raise ValueError(f"{ensemble.name}: data.image_text needs {{text}} in the template")
            if ensemble.golden and ensemble.task == "generation":
                raise ValueError(
                    f"{ensemble.name}: golden inputs with images are asked in chats, not by the template; leave golden "
                    "out of generation over images"
                )
            for member in [*ensemble.members, *ensemble.candidates]:
                kinds = {stage.kind for stage in member.stages} - {"lora"}
                if kinds:
                    raise ValueError(
                        f"{ensemble.name}/{member.name}: {min(kinds)} is not trained over images; use lora"
                    )

    def _heads_can_answer(self) -> None:
        written = [each.name for each in self.ensembles if each.task == "generation"]
        if written:
            raise ValueError(
                "generation needs a causal base that answers by text: an engine either pools vectors for heads or "
                f"writes text; put {written[0]!r} into another recipe"
            )
        for ensemble in self.ensembles:
            if ensemble.prompts and self.data.text_pair:
                raise ValueError(
                    f"{ensemble.name}: prompts are compared with single inputs; leave out text_pair"
                )
            if self.base.kind == "causal" and ensemble.words_labels:
                raise ValueError(
                    f"{ensemble.name}: template, verbalizers and label_scoring are for labels as text; heads read the "
                    "text alone"
                )

    @model_validator(mode="after")
    def _base_stages_fit(self) -> Self:
        names = [ensemble.name for ensemble in self.ensembles]
        for stage in self.base.stages:
            if not isinstance(stage, FineTuningStage):
                continue
            for name in stage.ensembles or []:
                if name not in names:
                    raise ValueError(f"base: fine_tuning names the unknown ensemble {name!r}")
            if self.base.by_heads and len(stage.ensembles or names) > 1:
                raise ValueError(
                    "base: if members answer by heads, fine_tuning is on one ensemble, because its head has that "
                    "ensemble's labels; name one in `ensembles`"
                )
            self._check_layers("base", stage.layers)
        return self

    @model_validator(mode="after")
    def _members_fit(self) -> Self:
        for number, ensemble in enumerate(self.ensembles):
            for member in [*ensemble.members, *ensemble.candidates]:
                where = f"{ensemble.name}/{member.name}"
                if self.base.by_heads and member.soft:
                    raise ValueError(
                        f"{where}: prefix, prompt and p_tuning need a causal base that answers by text: vLLM pools "
                        "vectors for heads without virtual tokens; use lora"
                    )
                if self.base.by_heads and member.alora:
                    raise ValueError(
                        f"{where}: alora needs a causal base that answers by text: heads read a text without a prompt, "
                        "in which nothing is invoked; use lora"
                    )
                for stage in member.stages:
                    if isinstance(stage, LoraStage):
                        self._check_layers(where, stage.layers)
                        self._check_pooling(where, stage)
                    if isinstance(stage, DistillationStage):
                        self._check_teacher(where, stage.teacher, ensemble, self.ensembles[:number])
        return self

    @model_validator(mode="after")
    def _candidates_have_folders(self) -> Self:
        owners: dict[str, str] = {}
        for ensemble in self.ensembles:
            for candidate in ensemble.candidates:
                where, folder = f"{ensemble.name}/{candidate.name}", candidate.folder(ensemble.name)
                if folder in owners:
                    raise ValueError(
                        f"the candidates {owners[folder]} and {where} would be in the same folder, "
                        f"candidates/{folder}; rename one of them"
                    )
                owners[folder] = where
        return self

    def _check_layers(self, where: str, layers: int | None) -> None:
        scratch = self.base.scratch
        if layers and scratch and layers > scratch.layers:
            raise ValueError(f"{where}: layers is {layers}, but the base has {scratch.layers}")

    def _check_pooling(self, where: str, stage: LoraStage) -> None:
        if self.base.kind == "causal" and stage.pooling not in (None, "last"):
            raise ValueError(
                f"{where}: pooling is {stage.pooling}, but over a causal base heads read the last token, which alone "
                "has seen the whole text; leave it out"
            )

    def _check_teacher(
        self,
        where: str,
        teacher: TeacherRecipe,
        own: EnsembleRecipe,
        earlier: Sequence[EnsembleRecipe],
    ) -> None:
        if teacher.path is not None:
            if self.base.by_heads:
                raise ValueError(
                    f"{where}: a teacher's path is for answers by text: a model without a head gives no label scores; "
                    "distil from an ensemble or a member"
                )
            return
        found = next((each for each in earlier if each.name == teacher.taught_by), None)
        if found is None:
            names = ", ".join(each.name for each in earlier) or "none"
            raise ValueError(
                f"{where}: the teacher {teacher.taught_by!r} must be an ensemble that is listed before {own.name!r}; "
                f"those are: {names}"
            )
        if (found.task, found.label, found.target) != (own.task, own.label, own.target):
            raise ValueError(
                f"{where}: the teacher {found.name!r} answers another task or column than {own.name!r}"
            )
        if own.task == "generation" and any(member.alora for member in found.members):
            raise ValueError(
                f"{where}: the teacher {found.name!r} has activated LoRAs, which read prompts of their own; for text, "
                "distil from an ensemble of other adapters"
            )
        names_of = [member.name for member in found.members]
        if teacher.member and teacher.member.partition("/")[2] not in names_of:
            raise ValueError(
                f"{where}: the teacher {teacher.member!r} is not a member; {found.name!r} has {', '.join(names_of)}"
            )

    def find(self, name: str) -> EnsembleRecipe | None:
        """Return the ensemble called `name`; None if the recipe has no such ensemble."""
        return next((ensemble for ensemble in self.ensembles if ensemble.name == name), None)

    @property
    def searches(self) -> bool:
        """Whether any ensemble or member has a search."""
        return any(ensemble.searches for ensemble in self.ensembles)


def located(recipe: Path) -> Path:
    """Return the recipe's file. A plain name that is no file is that of a recipe in `training/recipes/`, if it has
    one of that name."""
    own = RECIPES / f"{recipe}.yaml"
    plain = recipe.name == str(recipe)
    return own if plain and not recipe.exists() and own.is_file() else recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file. Raises RecipeError, whose message names the wrong key and what was expected."""
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
    """Validate a recipe's content. Relative paths start at `folder`; messages begin with `source`. Raises
    RecipeError."""
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
            RowsRecipe,
            FusionRecipe,
            SearchRecipe,
            RangeRecipe,
            TeacherRecipe,
            PretrainingStage,
            FineTuningStage,
            *STAGES.values(),
        )
    )
