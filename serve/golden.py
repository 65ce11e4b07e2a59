"""Golden inputs: which of them can be checked, and what is expected of each task."""

from serve.manifest import Ensemble

GOLDEN_TOKENS = 64
"""Longest text that is asked for where a golden input of generation does not say how long."""


def unserved_golden(ensemble: Ensemble) -> str | None:
    """Why golden inputs of this ensemble cannot be checked, if they cannot."""
    for number, golden in enumerate(ensemble.golden):
        fields = {"text"} if isinstance(golden.input, str) else golden.input.keys()
        if "text" not in fields or fields - {"text", "text_pair"}:
            return (
                f"golden.{number}: the input must be a text, or have 'text' and perhaps 'text_pair'"
            )
    return None
