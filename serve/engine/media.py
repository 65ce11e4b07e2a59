"""Where images, audio and video of a chat may come from."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from serve.refusal import Refusal

NOWHERE = "data-urls-only.invalid"
"""A domain that nothing has. vLLM fetches from everywhere unless it is told some domain."""


def media_refusal(
    messages: Any, domains: Sequence[str] | None, local: str | None
) -> Refusal | None:
    """Why a chat's media cannot be taken, if so: they come in `data:` URLs, from the domains that the operator has
    allowed (vLLM's `allowed_media_domains`), or from below its `allowed_local_media_path`, where vLLM keeps the bounds.
    """
    for url in _urls(messages):
        scheme, host = _parted(url)
        if scheme == "data" or (scheme == "file" and local):
            continue
        if scheme in ("http", "https") and host in (domains or ()):
            continue
        return Refusal(
            400,
            f"Media are taken as data URLs, and this one begins with {url[:60]!r}: send the content itself "
            "('data:image/png;base64,...'), or ask the operator to allow the place (allowed_media_domains).",
            param="messages",
        )
    return None


def _urls(messages: Any) -> Iterator[str]:
    """Every URL of a part of a message: `{"image_url": {"url": ...}}`, or `{"image_url": ...}`."""
    for message in _dicts(messages):
        for part in _dicts(message.get("content")):
            for name, value in part.items():
                if isinstance(name, str) and name.endswith("_url"):
                    url = value.get("url") if isinstance(value, dict) else value
                    if isinstance(url, str):
                        yield url


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (
        (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())
    )


def _parted(url: str) -> tuple[str, str | None]:
    """Its scheme and host. Of a data URL only the scheme: the rest may be megabytes."""
    if url[:5].lower() == "data:":
        return "data", None
    try:
        parts = urlsplit(url)
        return parts.scheme.lower(), parts.hostname
    except ValueError:
        return "", None
