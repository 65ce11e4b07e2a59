"""The recipe's part on cleaning: what happens to rows that should not be trained on."""

from typing import Literal

from pydantic import Field

from training.recipe.values import Strict


class CleanRecipe(Strict):
    """What happens to rows of each kind. Rows that leave are counted and written to the quarantine file.

    All keys apply to training rows. Test rows leave only if they cannot be read, have no text or answer or, with
    `unseen_labels`, have a label that no training row has.
    """

    unreadable: Literal["quarantine", "fail"] = "quarantine"
    """Lines that are in another encoding, longer than 16 MB, not JSON, or have too many or too few cells; images that
    cannot be decoded."""
    missing: Literal["quarantine", "fail"] = "quarantine"
    """Rows without a text or an answer."""
    min_characters: int = Field(1, ge=1)
    """Rows with shorter texts leave."""
    max_characters: int | None = Field(None, ge=1)
    """Rows with longer texts leave."""
    min_side: int = Field(1, ge=1)
    """Images: rows whose image has a shorter side of fewer pixels leave."""
    languages: list[str] = Field(default_factory=list)
    """ISO 639-1 codes of the languages that texts may have; default: all languages."""
    language_confidence: float = Field(0.4, ge=0, le=1)
    """A row leaves if its text is in another language with at least this probability."""
    conflicts: Literal["quarantine", "majority", "keep"] = "quarantine"
    """Equal texts with different labels: `quarantine` removes all of them; `majority` keeps the rows with the most
    frequent label."""
    duplicates: Literal["exact", "near", "keep"] = "exact"
    """Equal texts (with `near`, also texts that are at least as similar as `similarity`) with equal answers: only the
    first row stays. Rows with different answers all stay, and stay together in every split."""
    similarity: float = Field(0.9, gt=0, le=1)
    """Least similarity of near duplicates: of texts Jaccard's, over pieces of 5 characters; of images the share of
    equal bits of their perceptual hashes."""
    leakage: Literal["quarantine", "fail", "keep"] = "quarantine"
    """Training rows whose text (with `near`, a similar text) is in the validation or test rows, and validation rows
    whose text is in the test rows."""
    label_errors: Literal["quarantine", "report", "keep"] = "keep"
    """Labels that are likely wrong, by a model that was not trained on the row (cleanlab). `report` writes them to the
    review queue."""
    unseen_labels: Literal["quarantine", "fail"] = "fail"
    """Validation and test rows with a label that no training row has."""
    max_loss: float = Field(0.5, gt=0, le=1)
    """The run stops if a larger share of a split leaves."""
