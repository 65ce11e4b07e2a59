"""What the engines of one base may have of their own, where a server has several bases."""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from serve.config.chat import ChatSettings

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


class PoolSettings(BaseModel):
    """What one pool of engines has of its own; None: as the server's settings say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int | None = Field(None, ge=1, le=1024)
    dtype: Dtype | None = None
    engine: dict[str, Any] = {}
    """Added to the server's `engine`; where both have an argument, this one counts."""
    adapter_slots: int | None = Field(None, ge=1, le=4096)
    host_adapters: int | None = Field(None, ge=1, le=16384)
    gpus: float | None = Field(None, ge=0)
    chat: ChatSettings | None = None
