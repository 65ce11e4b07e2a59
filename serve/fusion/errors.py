"""The errors of a fusion."""

from serve.errors import UserError


class FusionError(UserError, ValueError):
    """Inputs, weights or parameters that cannot be fused. The message is one sentence for the person who gave them."""


class OutputError(FusionError):
    """Outputs of members, or of fitted parameters, that cannot be fused or are no answer. The request is not at
    fault."""


class StaleFusionError(FusionError):
    """Fitted parameters that belong to other adapters than the ones they would be used with."""
