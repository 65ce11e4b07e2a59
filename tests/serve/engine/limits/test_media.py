"""Where images, audio and video of a chat may come from."""

from typing import Any

import pytest

from serve.engine.limits.media import NOWHERE, media_refusal


def chat(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": "look"}, {"role": "user", "content": list(parts)}]


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


FETCHED = [
    image("http://169.254.169.254/latest/meta-data/"),
    image("https://example.org/cat.png"),
    image("HTTPS://example.org/cat.png"),
    image("ftp://example.org/cat.png"),
    image("file:///etc/passwd"),
    image("//example.org/cat.png"),
    image("http://[::1"),
    image(""),
    {"type": "audio_url", "audio_url": {"url": "http://localhost:8265/"}},
    {"type": "video_url", "video_url": {"url": "http://localhost:8265/"}},
    {"type": "input_image", "image_url": "http://localhost:8265/"},
    {"image_url": "http://localhost:8265/"},
    {"image_url": {"url": "http://localhost:8265/"}, "uuid": "x"},
]


@pytest.mark.parametrize("part", FETCHED)
def test_nothing_is_fetched_by_default(part: Any) -> None:
    for domains in (None, [], [NOWHERE]):
        refusal = media_refusal(chat({"type": "text", "text": "what is this?"}, part), domains, "")
        assert refusal is not None
        assert (refusal.status, refusal.param) == (400, "messages")
        assert "data URL" in refusal.message


def test_data_urls_are_accepted() -> None:
    for url in ("data:image/png;base64,AAAA", "DATA:image/png;base64," + "A" * 1_000_000):
        assert media_refusal(chat(image(url)), None, None) is None


def test_only_what_the_operator_allows_is_accepted() -> None:
    allowed = ["images.example.org"]
    assert media_refusal(chat(image("https://images.example.org/cat.png")), allowed, None) is None
    for url in (
        "https://example.org/cat.png",
        "https://images.example.org.evil.example/cat.png",
        "https://images.example.org@evil.example/cat.png",
        "file:///data/cat.png",
    ):
        assert media_refusal(chat(image(url)), allowed, None) is not None
    assert media_refusal(chat(image("file:///data/cat.png")), None, "/data") is None


@pytest.mark.parametrize(
    "messages", [None, "x", [], [7], [{"role": "user"}], [{"content": [7, None]}]]
)
def test_messages_without_media_are_let_through(messages: Any) -> None:
    assert media_refusal(messages, None, None) is None
