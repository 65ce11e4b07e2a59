"""Who may do what: tokens, and for admin routes also where the request comes from."""

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import Request

from serve.config import Settings, is_loopback
from serve.engine.interface import Refusal
from serve.gateway.errors import RefusedError, refused


class Guard:
    """Two FastAPI dependencies: `inference` and `admin`. They run before a body is read."""

    def __init__(self, settings: Settings) -> None:
        admin = settings.admin_token
        self._admin_tokens = [] if admin is None else [admin.get_secret_value()]
        inference = [token.get_secret_value() for token in settings.inference_tokens]
        self._tokens = [*inference, *self._admin_tokens]
        self._inference_needs_token = bool(inference)
        self._loopback = settings.loopback
        self._allowed_hosts = {host.lower() for host in settings.allowed_hosts}
        self._hosts = {settings.host.lower(), *self._allowed_hosts}

    async def inference(self, request: Request) -> None:
        """A token is needed only where inference tokens are configured; the admin's is one too.

        Raises RefusedError (401)."""
        if self._inference_needs_token:
            _check_token(request, self._tokens)

    async def admin(self, request: Request) -> None:
        """The admin token, from a host and a page that are ours, and no form that any page can send.

        Raises RefusedError: 400, 401, 403, or 404 where there are no admin routes."""
        if not self._admin_tokens and not self._loopback:
            raise refused(
                404,
                "Admin routes do not exist on this server: it can be reached from other machines "
                "and has no admin token; start it with CHOIR_ADMIN_TOKEN.",
            )
        self._check_host(request)
        self._check_origin(request)
        if self._admin_tokens:
            _check_token(request, self._admin_tokens)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise refused(400, "Admin routes take application/json only: set the content-type.")

    def _check_host(self, request: Request) -> None:
        """A page whose DNS name was re-pointed to this server still sends its own name."""
        host = _hostname(f"//{request.headers.get('host', '')}")
        if not self._is_ours(host):
            raise refused(
                403,
                f"The host {host!r} is not one of this server's; if it is, start the server with "
                "--allowed-host.",
            )

    def _check_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is None:
            return
        # Another port of this machine is another origin.
        same = origin.partition("://")[2].lower() == request.headers.get("host", "").lower()
        if not same and _hostname(origin) not in self._allowed_hosts:
            raise refused(
                403,
                f"The origin {origin[:200]!r} may not use admin routes; if it is yours, start the "
                "server with --allowed-host.",
            )

    def _is_ours(self, host: str) -> bool:
        if host in self._hosts or is_loopback(host):
            return True
        # DNS cannot re-point an address, and a server on all interfaces cannot know its own.
        return not self._loopback and _is_address(host)


def _check_token(request: Request, valid: Iterable[str]) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
    # Every token is compared, each in constant time, so that timing tells nothing about any.
    matches = [hmac.compare_digest(given, each.encode()) for each in valid]
    if not any(matches):
        what = "is wrong" if given else "is missing: send `Authorization: Bearer TOKEN`"
        raise RefusedError(Refusal(401, f"The token {what}."), {"www-authenticate": "Bearer"})


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
