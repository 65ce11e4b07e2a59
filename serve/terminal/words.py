"""Numbers with their nouns."""


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """Return `count` with its noun: `1 row`, `45 rows`, `1,200 rows`. `nouns` is the plural, if it is not noun + s."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
