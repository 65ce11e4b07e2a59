"""Why Choir refuses a request: the value that crosses processes, and the exception that carries it inside one.

A remote exception would be logged with a stack trace and lose its status on the way, so engines and the controller
return a `Refusal`. Code that is deeper down raises a `RefusedError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused, in the words and with the status that the client gets."""

    status: int
    """The HTTP status."""
    message: str
    code: str | None = None
    param: str | None = None
    """The field of the body, or the parameter of the query, that is wrong."""


class RefusedError(Exception):
    """Ends the work on a request. Whoever took the request answers with the refusal."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers` are added to the HTTP answer."""
        # Names of files need not be UTF-8; answers and the audit have to be.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.refusal = Refusal(status, message, code, param)
        self.headers = headers or {}

    @classmethod
    def of(cls, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Self:
        return cls(refusal.status, refusal.message, refusal.code, refusal.param, headers)
