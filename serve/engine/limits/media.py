"""Where the images, audio and video of a chat may come from."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from serve.errors import Refusal

NOWHERE = "data-urls-only.invalid"
"""A domain that does not exist. vLLM fetches from every domain unless it is given a list of allowed ones."""


def media_refusal(
    messages: Any, domains: Sequence[str] | None, local: str | None, param: str = "messages"
) -> Refusal | None:
    """Returns why a chat's media are refused; None if they are allowed.

    Allowed are `data:` URLs, URLs of `domains` (vLLM's `allowed_media_domains`), and, if `local` is set (vLLM's
    `allowed_local_media_path`), `file:` URLs; vLLM checks that those lie below that path. `param`: the field of the
    request that has the messages."""
    for _, _, url in media_urls(messages):
        scheme, host = _scheme_and_host(url)
        if scheme == "data" or (scheme == "file" and local):
            continue
        if scheme in ("http", "https") and host in (domains or ()):
            continue
        return Refusal(
            400,
            f"Media are taken as data URLs, and this one begins with {url[:60]!r}: send the content itself "
            "('data:image/png;base64,...'), or ask the operator to allow the place (allowed_media_domains).",
            param=param,
        )
    return None


def media_urls(messages: Any) -> Iterator[tuple[str, str, str]]:
    """Yields every URL in the messages, `{"image_url": {"url": ...}}` or `{"image_url": ...}`: its place in the
    messages, the name of its field, and itself."""
    for number, message in _numbered(messages):
        for place, part in _numbered(message.get("content")):
            for name, value in part.items():
                if isinstance(name, str) and name.endswith("_url"):
                    url = value.get("url") if isinstance(value, dict) else value
                    if isinstance(url, str):
                        yield f"[{number}].content[{place}]", name, url


def _numbered(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of a list, each with its place."""
    if isinstance(value, list):
        yield from ((place, each) for place, each in enumerate(value) if isinstance(each, dict))


def _scheme_and_host(url: str) -> tuple[str, str | None]:
    """Returns the scheme and the host. Does not parse a data URL, which may have megabytes: its host is None."""
    if url[:5].lower() == "data:":
        return "data", None
    try:
        parts = urlsplit(url)
        return parts.scheme.lower(), parts.hostname
    except ValueError:
        return "", None
