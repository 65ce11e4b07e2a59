"""What is done about rows that should not be trained on."""

from typing import Literal

from pydantic import Field

from training.recipe.values import Strict


class CleanRecipe(Strict):
    """Each key names what happens to one kind of row; whatever leaves is counted and lies in the quarantine file.

    Training rows are cleaned by all of it. Test rows are what methods are compared on: they leave only where they
    cannot be read, have no text or answer, or, if asked for, have a label that no training row has.
    """

    unreadable: Literal["quarantine", "fail"] = "quarantine"
    """Lines in another encoding, of more than 16 MB, with too many or too few cells, or that are no JSON."""
    missing: Literal["quarantine", "fail"] = "quarantine"
    """Rows without a text or an answer."""
    min_characters: int = Field(1, ge=1)
    """Shorter texts leave."""
    max_characters: int | None = Field(None, ge=1)
    """Longer texts leave."""
    languages: list[str] = Field(default_factory=list)
    """ISO 639-1 codes that texts may be in; none: all."""
    language_confidence: float = Field(0.4, ge=0, le=1)
    """A row leaves when another language is this likely."""
    conflicts: Literal["quarantine", "majority", "keep"] = "quarantine"
    """Equal texts with different labels: all leave, or those leave that the majority of their group contradicts."""
    duplicates: Literal["exact", "near", "keep"] = "exact"
    """Equal texts (or, with `near`, texts about as similar as `similarity`) with equal answers: the first one stays.
    Those with other answers all stay, on one side of every split."""
    similarity: float = Field(0.9, gt=0, le=1)
    """Jaccard similarity of the texts' pieces of 5 characters."""
    leakage: Literal["quarantine", "fail", "keep"] = "quarantine"
    """Training and validation rows whose text (with `near`: a similar one) is in a split that judges them."""
    label_errors: Literal["quarantine", "report", "keep"] = "keep"
    """Labels that a model which has not seen the row contradicts with confidence (cleanlab); `report` writes them into
    a file for review."""
    unseen_labels: Literal["quarantine", "fail"] = "fail"
    """Validation and test rows with a label that no training row has."""
    max_loss: float = Field(0.5, gt=0, le=1)
    """A larger share of a split leaving stops the run."""
