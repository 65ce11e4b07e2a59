"""Authorization: tokens and rate limits, and for admin routes also the host and origin of the request."""

import ipaddress
import math
from urllib.parse import urlsplit

from fastapi import Request

from serve import metrics
from serve.bearer import RESERVED, Role, Token, find_token
from serve.config.settings import Settings, is_loopback
from serve.errors import Refusal, RefusedError
from serve.gateway.http.rate import RateLimit

_CALLER = "choir.caller"


class Guard:
    """Three FastAPI dependencies: `reading`, `inference` and `admin`. They run before the body is read."""

    def __init__(self, settings: Settings) -> None:
        self._tokens = settings.sealed().tokens
        self._administered = any(token.role == "admin" for token in self._tokens)
        self.closed = any(token.role != "admin" for token in self._tokens)
        """Whether routes that read need a token."""
        self._rate = RateLimit(settings.max_requests_per_minute)
        self._loopback = settings.loopback
        self._allowed_hosts = {host.lower() for host in settings.allowed_hosts}
        self._hosts = {settings.host.lower(), *self._allowed_hosts}

    async def reading(self, request: Request) -> None:
        """Admit a request that reads. It needs a token only if the server has tokens other than an admin's.

        Raises RefusedError (401, 403 or 429)."""
        self._admit(request, "read", needed=self.closed)

    async def inference(self, request: Request) -> None:
        """Admit an inference request: as `reading`, but the token needs the role `predict`."""
        self._admit(request, "predict", needed=self.closed)

    async def admin(self, request: Request) -> None:
        """Admit a request that changes a version.

        It needs a token of the role `admin` if the server has one, a host and an origin of this server, and
        the content type of JSON, which a form on a foreign page cannot send. Raises RefusedError (400, 401,
        403 or 429; 404 if the server has no admin routes)."""
        if not self._administered and not self._loopback:
            raise RefusedError(
                404,
                "This server has no admin routes, because other machines can reach it and it has no admin "
                "token; start it with CHOIR_ADMIN_TOKEN.",
            )
        self._check_host(request)
        self._check_origin(request)
        self._admit(request, "admin", needed=self._administered)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RefusedError(
                400,
                "Admin routes take only JSON: send the header `content-type: application/json`.",
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
                403,
                f"The token {token.name!r} has the role {token.role}; this route needs the role {role}.",
            )

    def _check_rate(self, request: Request, token: Token | None) -> None:
        """Refuse a caller that has sent too many requests. Requests with a wrong token count for their address, so
        that guessing tokens is slow."""
        caller = f"token {token.name}" if token else f"address {_address(request)}"
        # Count by the hash: all tokens of CHOIR_INFERENCE_TOKENS have the same name.
        seconds = self._rate.wait(f"token {token.sha256}" if token else caller)
        if seconds:
            metrics.request_refused("rate")
            refusal = Refusal(
                429, f"Too many requests of the {caller}; wait as long as Retry-After says."
            )
            raise RefusedError.of(refusal, {"retry-after": str(math.ceil(seconds))})

    def _check_host(self, request: Request) -> None:
        """Refuse foreign host names. A page that points its own DNS name at this server (DNS rebinding) sends that
        name."""
        host = _hostname(f"//{request.headers.get('host', '')}")
        if not self._is_ours(host):
            raise RefusedError(
                403,
                f"The host {host!r} is not a known name of this server; if it is one, start the server "
                "with --allowed-host.",
            )

    def _check_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is None:
            return
        # The port counts: another port of this machine is another origin.
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
        # An address needs no DNS, so it is safe; and a server on all interfaces cannot know its own addresses.
        return not self._loopback and _is_address(host)


def actor(request: Request) -> str:
    """Return who sent an admitted request, for the audit: the token's name, or what stands for one, and the address.

    `ann, from 10.0.0.5`; without a name `admin token, from 10.0.0.5`; without a token `no token, from 127.0.0.1`."""
    name = request.scope.get(_CALLER)
    who = "no token" if name is None else f"{name} token" if name in RESERVED else name
    return f"{who}, from {_address(request)}"


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
