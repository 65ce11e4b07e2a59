"""How an engine writes chats for its base, and what it reads from the answers: vLLM's own settings, by vLLM's names."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class ChatSettings(BaseModel):
    """The settings of vLLM's chats that a base may need; the defaults are vLLM's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enable_auto_tool_choice: bool = False
    """Whether a request with tools may leave it to the model to call one; needs `tool_call_parser`."""
    tool_call_parser: str | None = Field(None, min_length=1)
    """How tool calls are written in an answer, by vLLM's name, such as hermes."""
    reasoning_parser: str | None = Field(None, min_length=1)
    """How reasoning is written in an answer, by vLLM's name, such as qwen3; it is told apart from the content."""
    chat_template: str | None = Field(None, min_length=1)
    """A Jinja template, or the file of one, instead of the base's own. A file is read when the server starts."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """Whether the template gets a message's content as a text or as a list of parts."""
    default_chat_template_kwargs: dict[str, Any] = {}
    """Variables of the template, for requests that do not give them."""

    @field_validator("chat_template")
    @classmethod
    def _read_template(cls, given: str | None) -> str | None:
        """Returns the template itself. A text with braces or several lines is one; anything else names a file."""
        if given is None or "{" in given or "\n" in given:
            return given
        try:
            return Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the file {given} cannot be read: {error}") from error

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError(
                "'enable_auto_tool_choice' needs 'tool_call_parser', which says how the base writes a tool call"
            )
        return self
