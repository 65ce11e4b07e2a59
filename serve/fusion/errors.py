"""What can be wrong with a fusion."""

from serve.errors import UserError


class FusionError(UserError, ValueError):
    """Inputs, weights or parameters that cannot be fused, in one sentence for whoever gave them."""


class OutputError(FusionError):
    """What members, or parameters that were fitted, say cannot be fused or is no answer: their fault, whatever was
    asked."""


class StaleFusionError(FusionError):
    """Fitted parameters that belong to other adapters than the ones they would be used with."""
