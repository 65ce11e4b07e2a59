"""The documents of pretraining: texts that templates make from rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from training.data.cleaning.families import families
from training.data.steps import FAMILY


@dataclass(frozen=True)
class Documents:
    """Texts and their families, which stay together in every split."""

    texts: Sequence[str]
    families: Sequence[int]

    @classmethod
    def of(cls, rows: Dataset, templates: Sequence[str]) -> "Documents":
        """Apply each template to each row, in order. Documents are in one family if their texts are equal, or if one
        template made them from rows of one family."""
        texts = [template.format_map(row) for row in rows for template in templates]
        known = rows[FAMILY] if FAMILY in rows.column_names else range(len(rows))
        groups = [(family, number) for family in known for number in range(len(templates))]
        return cls(texts, families(texts, groups=groups))
