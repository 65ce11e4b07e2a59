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
        """Each row by each template, in order. Of one family are what a template makes of one family of rows, and equal
        texts."""
        texts = [template.format_map(row) for row in rows for template in templates]
        known = rows[FAMILY] if FAMILY in rows.column_names else range(len(rows))
        groups = [(family, number) for family in known for number in range(len(templates))]
        return cls(texts, families(texts, groups=groups))
