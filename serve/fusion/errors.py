"""What can be wrong with a fusion."""


class FusionError(ValueError):
    """Inputs, weights or parameters that cannot be fused, in one sentence for whoever gave them."""


class StaleFusionError(FusionError):
    """Fitted parameters that belong to other adapters than the ones they would be used with."""
