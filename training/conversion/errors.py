"""The error of everything that cannot be converted."""

from serve.errors import UserError


class ConversionError(UserError, ValueError):
    """An adapter or model that cannot be converted. The message is for the person who has it."""
