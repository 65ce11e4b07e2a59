"""Who may do what: tokens, and for admin routes also where the request comes from."""

import ipaddress
import math
from urllib.parse import urlsplit

from fastapi import Request

from serve.bearer import Role, Token, find_token
from serve.config import Settings, is_loopback
from serve.gateway.http.rate import RateLimit
from serve.refusal import Refusal, RefusedError

_CALLER = "choir.caller"


class Guard:
    """Three FastAPI dependencies: `reading`, `inference` and `admin`. They run before a body is read."""

    def __init__(self, settings: Settings) -> None:
        self._tokens = settings.sealed().tokens
        self._administered = any(token.role == "admin" for token in self._tokens)
        self._closed = any(token.role != "admin" for token in self._tokens)
        self._rate = RateLimit(settings.max_requests_per_minute)
        self._loopback = settings.loopback
        self._allowed_hosts = {host.lower() for host in settings.allowed_hosts}
        self._hosts = {settings.host.lower(), *self._allowed_hosts}

    async def reading(self, request: Request) -> None:
        """A token is needed only where others than an admin's are configured.

        Raises RefusedError: 401, 403 or 429."""
        self._admit(request, "read", needed=self._closed)

    async def inference(self, request: Request) -> None:
        """The same with a token of the role `predict`."""
        self._admit(request, "predict", needed=self._closed)

    async def admin(self, request: Request) -> None:
        """A token of the role `admin`, from a host and a page that are ours, and no form that any page can send.

        Raises RefusedError: 400, 401, 403, 429, or 404 where there are no admin routes."""
        if not self._administered and not self._loopback:
            raise RefusedError(
                404,
                "Admin routes do not exist on this server: it can be reached from other machines "
                "and has no admin token; start it with CHOIR_ADMIN_TOKEN.",
            )
        self._check_host(request)
        self._check_origin(request)
        self._admit(request, "admin", needed=self._administered)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RefusedError(
                400, "Admin routes take application/json only: set the content-type."
            )

    def _admit(self, request: Request, role: Role, *, needed: bool) -> None:
        given = _given(request)
        token = find_token(self._tokens, given)
        self._check_rate(request, token)
        if token is not None:
            request.scope[_CALLER] = token.name
        if not needed:
            return
        if token is None:
            what = "is wrong" if given else "is missing: send `Authorization: Bearer TOKEN`"
            raise RefusedError.of(
                Refusal(401, f"The token {what}."), {"www-authenticate": "Bearer"}
            )
        if not token.may(role):
            raise RefusedError(
                403, f"The token {token.name!r} has the role {token.role}, and this needs {role}."
            )

    def _check_rate(self, request: Request, token: Token | None) -> None:
        """Wrong tokens are counted on the address that they come from, so that guessing is slow."""
        caller = f"token {token.name}" if token else f"address {_address(request)}"
        # by its hash: tokens of CHOIR_INFERENCE_TOKENS have a name in common
        seconds = self._rate.wait(f"token {token.sha256}" if token else caller)
        if seconds:
            refusal = Refusal(429, f"Too many requests of the {caller}; try again later.")
            raise RefusedError.of(refusal, {"retry-after": str(math.ceil(seconds))})

    def _check_host(self, request: Request) -> None:
        """A page whose DNS name was re-pointed to this server still sends its own name."""
        host = _hostname(f"//{request.headers.get('host', '')}")
        if not self._is_ours(host):
            raise RefusedError(
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
            raise RefusedError(
                403,
                f"The origin {origin[:200]!r} may not use admin routes; if it is yours, start the "
                "server with --allowed-host.",
            )

    def _is_ours(self, host: str) -> bool:
        if host in self._hosts or is_loopback(host):
            return True
        # DNS cannot re-point an address, and a server on all interfaces cannot know its own.
        return not self._loopback and _is_address(host)


def actor(request: Request) -> str:
    """Who sent a request that was admitted, for the audit."""
    return f"{request.scope.get(_CALLER, 'admin')}@{_address(request)}"


def _given(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


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
