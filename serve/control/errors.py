"""Why the controller cannot start."""

from serve.errors import UserError


class StartError(UserError):
    """Why the controller cannot start, in one sentence."""
