"""LiteLLM and LangChain, unchanged. Skipped where they are not installed: Choir needs neither."""

from typing import Any

import pytest

from tests.service.running import Service

pytestmark = [
    pytest.mark.engine,
    # They warn of their own code and of that of their libraries.
    pytest.mark.filterwarnings("ignore"),
]

MESSAGES = [{"role": "user", "content": "where is my card"}]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Otherwise it fetches a list of prices when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return pytest.importorskip("litellm")


@pytest.fixture
def langchain() -> Any:
    return pytest.importorskip("langchain_openai")


def test_litellm_chats_with_an_ensemble_and_streams(litellm: Any, service: Service) -> None:
    arguments = {
        "model": "openai/replies",
        "api_base": f"{service.url}/v1",
        "api_key": "none",
        "messages": MESSAGES,
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = litellm.completion(**arguments)
    assert whole.usage.completion_tokens > 0
    assert whole.choices[0].message.content
    chunks = list(litellm.completion(**arguments, stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == whole.choices[0].message.content
    own = {"fusion": {"method": "average", "return_members": True}}
    fused = litellm.completion(**arguments, extra_body=own)
    assert fused.choices[0].message.content


def test_litellm_completes_texts(litellm: Any, service: Service) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/replies/a",
        api_base=f"{service.url}/v1",
        api_key="none",
        prompt="where is my card",
        max_tokens=4,
        temperature=0,
    )
    body = {"model": "replies/a", "prompt": "where is my card", "max_tokens": 4, "temperature": 0}
    same = service.post("/v1/completions", body).json()["choices"][0]["text"]
    assert answer.choices[0].text == same


def test_litellm_raises_its_own_exceptions(litellm: Any, service: Service) -> None:
    arguments = {"api_base": f"{service.url}/v1", "api_key": "none", "messages": MESSAGES}
    with pytest.raises(litellm.NotFoundError, match="nobody"):
        litellm.completion(model="openai/nobody", **arguments)
    with pytest.raises(litellm.BadRequestError, match="intents"):
        litellm.completion(model="openai/intents", **arguments)


def test_langchain_chats_with_an_ensemble_and_streams(langchain: Any, service: Service) -> None:
    chat = langchain.ChatOpenAI(
        model="replies",
        base_url=f"{service.url}/v1",
        api_key="none",
        max_tokens=6,
        temperature=0,
        max_retries=0,
    )
    whole = chat.invoke("where is my card")
    assert whole.content
    assert whole.response_metadata["model_name"].startswith("replies@")
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(str(chunk.content) for chunk in chat.stream("where is my card")) == whole.content
    fused = chat.bind(extra_body={"fusion": {"method": "average"}})
    assert fused.invoke("where is my card").content


def test_langchain_gets_structured_answers(langchain: Any, service: Service) -> None:
    schema = {
        "title": "intent",
        "type": "object",
        "properties": {"intent": {"type": "string", "enum": ["card", "transfer"]}},
        "required": ["intent"],
        "additionalProperties": False,
    }
    chat = langchain.ChatOpenAI(
        model="replies/a",
        base_url=f"{service.url}/v1",
        api_key="none",
        max_tokens=120,
        temperature=0,
    )
    answer = chat.with_structured_output(schema, method="json_schema").invoke("my card is lost")
    assert answer in ({"intent": "card"}, {"intent": "transfer"})
