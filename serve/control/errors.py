"""Why the controller refuses a change, or cannot start."""

from serve.engine.interface import Refusal
from serve.errors import UserError


class Refused(Exception):
    """A request that is not let through."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        # Names of files need not be UTF-8; answers and the audit have to be.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.refusal = Refusal(status, message, code, param)


class StartError(UserError):
    """Why the controller cannot start, in one sentence."""
