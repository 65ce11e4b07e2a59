"""The arguments of vLLM's own server that Choir gives to its serving: vLLM's defaults, and the settings of chats."""

from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from jinja2 import TemplateRuntimeError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serve.engine.vllm_hooks.given import EngineSettingError

VLLM_MODEL = "choir"
"""The one model name that vLLM's serving knows; `current_generation` says which ensemble answers."""


def serving_arguments(model: str, chat: Mapping[str, Any]) -> Namespace:
    """Returns vLLM's arguments for the serving of one base. `chat`: the settings of chats by vLLM's names.

    Raises EngineSettingError for a parser that vLLM does not have, and for a template that is none."""
    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    args.model, args.served_model_name = model, [VLLM_MODEL]
    for name, value in chat.items():
        setattr(args, name, value)
    tools, thoughts = args.tool_call_parser, args.reasoning_parser or None
    _check_parser("tool_call_parser", tools, ToolParserManager.list_registered())
    _check_parser("reasoning_parser", thoughts, ReasoningParserManager.list_registered())
    args.structured_outputs_config = replace(
        args.structured_outputs_config, reasoning_parser=thoughts or ""
    )
    if args.chat_template is not None:
        _check_template(args.chat_template)
    return args


def _check_template(template: str) -> None:
    """Raises EngineSettingError if the text is no Jinja template."""
    message = {"role": "user", "content": "Hello"}
    try:
        # What it says of this message does not matter: it may refuse it.
        with suppress(TemplateRuntimeError, TypeError, ValueError):
            render_jinja_template([[message]], chat_template=template)
    except TemplateSyntaxError as error:
        raise EngineSettingError(
            f"The chat_template in the setting chat is no Jinja template: {error.message} (line {error.lineno})."
        ) from error


def _check_parser(name: str, given: str | None, known: list[str]) -> None:
    if given is not None and given not in known:
        raise EngineSettingError(
            f"vLLM has no {name} {given!r}, which the setting chat names; it has {', '.join(sorted(known))}."
        )
