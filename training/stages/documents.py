"""What pretraining reads: texts made of the rows by templates."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from training.data.cleaning.families import families
from training.data.steps import FAMILY


@dataclass(frozen=True)
class Documents:
    """Texts, and which of them are not to be parted."""

    texts: Sequence[str]
    families: Sequence[int]

    @classmethod
    def of(cls, rows: Dataset, templates: Sequence[str]) -> "Documents":
        """Each row by each template, in order. Those of one row's family are one, and so are equal ones."""
        texts = [template.format_map(row) for row in rows for template in templates]
        known = rows[FAMILY] if FAMILY in rows.column_names else range(len(rows))
        return cls(texts, families(texts, groups=[family for family in known for _ in templates]))
