"""What an adapter says of the base that it was trained on: `choir.json` beside its weights."""

import json
from functools import lru_cache
from pathlib import Path

from serve.digest import DigestError, folder_digest
from serve.plain_json import read_object

ORIGIN = "choir.json"


class OriginError(ValueError):
    """An adapter of another base, in one sentence."""


def record_base(folder: Path, base: Path) -> None:
    """Write the base's digest beside an adapter that was trained on it. A base that has none (its files are links into
    a cache) is not recorded."""
    digest = base_digest(base)
    if digest is not None:
        (folder / ORIGIN).write_text(json.dumps({"base": digest}) + "\n", encoding="utf-8")


def check_base(folder: Path, base: Path | None) -> None:
    """Compare what an adapter recorded with the base that it would be served on, where both are known.

    Raises OriginError."""
    file = folder / ORIGIN
    if not file.is_file():
        return
    try:
        recorded = read_object(file).get("base")
    except ValueError as error:
        raise OriginError(f"{ORIGIN} {error}.") from error
    if recorded is None or base is None:
        return
    found = base_digest(base)
    if found is not None and recorded != found:
        raise OriginError(
            f"It was trained on another base: {ORIGIN} says {str(recorded)[:80]!r}, and the base that is served has "
            f"the digest {found}."
        )


@lru_cache
def base_digest(folder: Path) -> str | None:
    """The digest of the base's folder, computed once: a base does not change while it is served. None if it has
    none."""
    try:
        return folder_digest(folder)
    except DigestError:
        return None
