"""Which settings of chats vLLM's serving gets, and which are refused before a base is loaded."""

from typing import Any

import pytest

from serve.engine.generation.serving_arguments import serving_arguments
from serve.engine.vllm_hooks.given import EngineSettingError, check_given


def test_without_settings_they_are_vllms_own() -> None:
    args = serving_arguments("base", {})
    assert (args.model, args.served_model_name) == ("base", ["choir"])
    assert not args.enable_auto_tool_choice
    assert args.tool_call_parser is args.chat_template is None
    assert args.structured_outputs_config.reasoning_parser == ""


def test_one_base_has_nothing_of_another() -> None:
    assert serving_arguments("a", {"reasoning_parser": "granite"}) is not None
    assert serving_arguments("b", {}).structured_outputs_config.reasoning_parser == ""


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ({"tool_call_parser": "herpes"}, "no tool_call_parser 'herpes'.* hermes, "),
        ({"reasoning_parser": "qwen"}, "no reasoning_parser 'qwen'.* qwen3"),
        ({"chat_template": "{% if x"}, "chat_template .* no Jinja template.*line 1"),
    ],
)
def test_what_vllm_does_not_have_is_refused(chat: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineSettingError, match=words):
        serving_arguments("base", chat)


def test_the_engines_argument_names_the_setting() -> None:
    with pytest.raises(EngineSettingError, match="reasoning_parser in the setting chat"):
        check_given({"reasoning_parser": "qwen3"})
