"""vLLM's own OpenAI routes, called inside the engine's process on top of the `EnsembleClient`.

Templates, sampling parameters, streaming, log-probabilities, tools and errors are vLLM's. Choir adds the model's name,
the members' answers and the members' tokens. It uses `init_app_state`, which changes between vLLM's versions, behind
the version guard in `vllm_hooks/arguments.py`.
"""

import asyncio
import json
import re
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, MutableMapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.openai.chat_completion.api_router import attach_router as attach_chat
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import attach_router as attach_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.api_router import attach_router as attach_responses
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.tokenize.api_router import attach_router as attach_tokenize
from vllm.v1.engine.async_llm import AsyncLLM

from serve.engine.generation.client import EnsembleClient, GenerationContext, current_generation
from serve.engine.generation.documents import complete, complete_events
from serve.engine.generation.member_prompts import MemberPrompts
from serve.engine.generation.refusals import in_choirs_words
from serve.engine.generation.response_events import begun
from serve.engine.generation.serving_arguments import VLLM_MODEL
from serve.engine.interface import GenerateCall, Route
from serve.engine.limits.chat_images import ChatImages
from serve.engine.limits.media import media_refusal
from serve.engine.limits.prompt_lengths import doubtful_prompts, length_refusal
from serve.engine.limits.text_limit import TextLimit
from serve.errors import Refusal
from serve.images.limits import ImageLimits
from serve.labels import LabelError, encoder, tokens_behind

PATHS: Mapping[Route, str] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}

CLOSING_SECONDS = 10
"""How long an answer waits for its work to end after it was told to stop."""


class OpenAIRoutes:
    """vLLM's routes as an ASGI application, without a socket."""

    def __init__(self, app: FastAPI, llm: AsyncLLM, tokenizer: Any, images: ImageLimits) -> None:
        self._app = app
        self._model = llm.model_config
        self._images = ChatImages(llm, images)
        self._limit = TextLimit(tokenizer, self._model.max_model_len)
        self._encode = encoder(tokenizer) if tokens_behind(tokenizer) else None
        """None unless the tokenizer puts special tokens at a text's end."""
        self._member_prompts = MemberPrompts(tokenizer)

    @classmethod
    async def create(
        cls, llm: AsyncLLM, args: Namespace, tokenizer: Any, images: ImageLimits
    ) -> "OpenAIRoutes":
        """Returns the routes over an engine. `args`: vLLM's, see `serving_arguments`. `images`: the limits of each."""
        app = FastAPI()
        app.state.args = args
        # vLLM tells its server to exit when the core is dead; here the replica itself does (`core_process/death.py`).
        app.state.server = SimpleNamespace(should_exit=False)
        for attach in (attach_chat, attach_completion, attach_responses, attach_tokenize):
            attach(app)
        init_exception_handler(app)
        client: EngineClient = EnsembleClient(llm)  # a virtual subclass
        await init_app_state(client, app.state, args, ("generate",))
        app.state.openai_serving_responses.enable_store = False  # whatever vLLM's environment says
        app.state.openai_serving_models.model_name = lambda lora_request=None: (
            current_generation.get().model
        )
        return cls(app, llm, tokenizer, images)

    async def _early_refusal(self, call: GenerateCall) -> Refusal | None:
        """Returns why the call is refused before vLLM sees it; None if it is not."""
        domains, local = self._model.allowed_media_domains, self._model.allowed_local_media_path
        refusal = length_refusal(call, self._limit)
        for name in ("messages", "input"):
            refusal = refusal or media_refusal(call.body.get(name), domains, local, name)
            refusal = refusal or await self._images.refusal(call.body.get(name), name)
        if refusal is not None:
            return refusal
        try:
            for text in doubtful_prompts(call, self._limit):
                await asyncio.to_thread(self._limit.check_doubtful, text)
        except LabelError as error:
            return Refusal(400, str(error), param="prompt")
        return None

    async def answer(
        self, call: GenerateCall, context: GenerationContext
    ) -> AsyncGenerator[bytes | Refusal, None]:
        """Yields the body of the answer; a refusal is the last item. When this ends, no member generates any more."""
        refusal = await self._early_refusal(call)
        if refusal is None and call.prompts:
            refusal = await self._render(call, context, call.prompts)
        if refusal is not None:
            yield refusal
            return
        if call.route == "completions":
            body = await self._read_by_members(call.body, context)
            call = replace(call, body=await self._without_ending(body))
        exchange = Exchange(self._app, call, context)
        try:
            status = await exchange.status()
            if status >= 400:
                yield _refusal(status, b"".join([part async for part in exchange.body()]))
                return
            if call.body.get("stream") and call.route == "responses":
                async for part in begun(exchange.body()):
                    yield part
            elif call.body.get("stream"):
                async for part in exchange.body():
                    # vLLM sends the status 200 before it asks the engine, so an error comes as an event.
                    if part.startswith(_ERROR_EVENT):
                        yield _refused_event(part)
                        return
                    yield part
            else:
                whole = b"".join([part async for part in exchange.body()])
                yield complete(whole, context, call)
        finally:
            await exchange.close()
            await context.wait_until_idle(CLOSING_SECONDS)

    async def _render(
        self, call: GenerateCall, context: GenerationContext, prompts: Mapping[str, str]
    ) -> Refusal | None:
        """Renders the members' own prompts as vLLM renders the request's, into `context.prompts`.

        A member's text is the whole prompt of a completion, or the content of a chat's last user message. Returns why a
        prompt is refused; None if none is, and also if vLLM itself will refuse the body."""
        rendered = {}
        for member, text in prompts.items():
            body: dict[str, Any] = {**call.body, "model": VLLM_MODEL}
            try:
                if call.route == "completions":
                    if not isinstance(body.get("prompt"), str):
                        return _one_prompt("'prompt' must be one text")
                    body = {**body, "prompt": text}
                    runs = [run for run in context.member_runs if run.name == member]
                    if runs and self._member_prompts.needed(context):
                        body["prompt"] = self._member_prompts.read(text, runs)[member]
                    body = await self._without_ending(body)
                    completion = self._app.state.openai_serving_completion.online_renderer
                    inputs = await completion.render_completion(CompletionRequest(**body))
                else:
                    messages = [dict(message) for message in body.get("messages") or ()]
                    users = [each for each in messages if each.get("role") == "user"]
                    if not users:
                        return _one_prompt("'messages' must have a message of the user")
                    users[-1]["content"] = text
                    chat = self._app.state.openai_serving_chat.online_renderer
                    request = ChatCompletionRequest(**{**body, "messages": messages})
                    _, inputs = await chat.render_chat(request)
            except (ValidationError, TypeError):
                return None  # vLLM tells the client what is wrong with the body
            except ValueError as error:
                return Refusal(400, f"The prompt of {member!r}: {error}", param="fusion.prompts")
            rendered[member] = inputs[0]
        context.prompts = rendered
        return None

    async def _read_by_members(
        self, body: Mapping[str, Any], context: GenerationContext
    ) -> Mapping[str, Any]:
        """Returns the body with a completion's texts as the token ids of the first member, where a text may end in
        invocations. Notes in `context.member_prompts` what the others read."""
        prompt, runs = body.get("prompt"), context.member_runs
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not self._member_prompts.needed(context) or not texts:
            return body
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            return body
        rows = []
        for text in texts:
            read = await asyncio.to_thread(self._member_prompts.read, text, runs)
            rows.append(read[runs[0].name])
            context.member_prompts[tuple(rows[-1])] = read
        return {**body, "prompt": rows[0] if isinstance(prompt, str) else rows}

    async def _without_ending(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the body with a completion's texts as token ids, without the special tokens at their end.

        Members are trained and evaluated to go on from the text itself."""
        prompt = body.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if self._encode is None or body.get("add_special_tokens") is False or not prompt:
            return dict(body)
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            return dict(body)
        rows = await asyncio.to_thread(self._encode, texts)
        return {**body, "prompt": rows[0] if isinstance(prompt, str) else rows}


class Exchange:
    """One request to the ASGI application, and its answer in parts."""

    def __init__(self, app: FastAPI, call: GenerateCall, context: GenerationContext) -> None:
        self._body = json.dumps({**call.body, "model": VLLM_MODEL}).encode()
        self._call, self._context = call, context
        self._streams = bool(call.body.get("stream"))
        self._parts: asyncio.Queue[MutableMapping[str, Any] | BaseException] = asyncio.Queue()
        self._sent = False
        self._gone = asyncio.Event()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self._body)).encode()),
        ]
        for name, value in (call.trace_headers or {}).items():
            headers.append((name.lower().encode(), value.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATHS[call.route],
            "raw_path": PATHS[call.route].encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
        }
        self._task = asyncio.create_task(self._run(app, scope, context))

    async def _run(self, app: FastAPI, scope: dict[str, Any], context: GenerationContext) -> None:
        current_generation.set(context)
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:
            await self._parts.put(error)

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._streams and message.get("body"):
            # Here, not where the parts are read: vLLM's generator is still at the piece that this event is about.
            message["body"] = complete_events(message["body"], self._context, self._call)
        await self._parts.put(message)

    async def _receive(self) -> dict[str, Any]:
        if self._sent:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        self._sent = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def status(self) -> int:
        """Returns the HTTP status once the application has sent it."""
        return int((await self._next())["status"])

    async def body(self) -> AsyncIterator[bytes]:
        """Yields the parts of the body as they come."""
        more = True
        while more:
            message = await self._next()
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._parts.get()
        if isinstance(message, BaseException):
            raise message
        return message

    async def close(self) -> None:
        """Aborts what still runs.

        Tells the application that the client has left, because vLLM's routes work in tasks of their own, and cancelling
        this exchange's task alone would leave those running."""
        self._gone.set()
        await asyncio.wait([self._task], timeout=CLOSING_SECONDS)
        self._task.cancel()
        await asyncio.wait([self._task])


def _refusal(status: int, body: bytes) -> Refusal:
    """Returns vLLM's error document as a refusal. vLLM's 422 becomes 400, as for every other invalid request."""
    status = 400 if status == 422 else status
    try:
        error = json.loads(body)["error"]
        message = in_choirs_words(_PARAMETER.sub("", error["message"]))
        return Refusal(status, message, code=None, param=error.get("param"))
    except (ValueError, KeyError, TypeError):
        return Refusal(status, "vLLM refused the request without saying why.")


_PARAMETER = re.compile(r" \((?:parameter|value)=.*\)$")
"""What vLLM's validation errors append to their sentence; the refusal's `param` already says it."""

_ERROR_EVENT = b'data: {"error":'


def _refused_event(part: bytes) -> Refusal:
    body = part.split(b"\n", 1)[0].removeprefix(b"data: ")
    code = json.loads(body)["error"].get("code")
    return _refusal(code if isinstance(code, int) and code >= 400 else 500, body)


def _one_prompt(what: str) -> Refusal:
    return Refusal(
        400, f"{what} where 'fusion' gives a member a prompt of its own.", param="fusion.prompts"
    )
