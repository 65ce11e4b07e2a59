"""Golden inputs: which of them can be checked."""

from serve.manifest import Ensemble


def unserved_golden(ensemble: Ensemble) -> str | None:
    """Why golden inputs of this ensemble cannot be checked, if they cannot."""
    if not ensemble.golden:
        return None
    if ensemble.task != "classification":
        return f"golden inputs are checked for classification only; {ensemble.task} has to go without them"
    for number, golden in enumerate(ensemble.golden):
        fields = {"text"} if isinstance(golden.input, str) else golden.input.keys()
        if "text" not in fields or fields - {"text", "text_pair"}:
            return (
                f"golden.{number}: the input must be a text, or have 'text' and perhaps 'text_pair'"
            )
    return None
